"""Alignment: the loss over groups, and retrieval against a plain loop."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmbm_core.fusion.base import Fused
from mmbm_core.tasks.align import AlignConfig, AlignTask
from mmbm_core.tasks.base import Representation

MODALITIES = ("text", "image", "audio")


def make(**given: Any) -> AlignTask:
    config = {"kind": "align", "inputs": {"text": "t", "image": "i"}, "loss": {"kind": "info_nce"}} | given
    return AlignTask(AlignConfig.model_validate(config), modalities=MODALITIES, width=4)


def view(vectors: dict[str, torch.Tensor], presence: torch.Tensor) -> Representation:
    zeros = torch.zeros(len(presence), 4)
    mask = torch.ones(len(presence), 1, dtype=torch.bool)
    every: Any = {m: vectors.get(m, zeros) for m in MODALITIES}
    return Representation(Fused(zeros[:, None], mask, zeros), every, presence)


def test_groups_are_the_source_row_or_a_column() -> None:
    ids = ["a.csv#1", "a.csv#1", "a.csv#2", "a.csv"]
    group = make().encode_targets({}, ids)["group"]
    assert group.dtype == np.int64 and (group >= 0).all()
    assert group[0] == group[1] and len(set(group.tolist())) == 3
    named = make(group="photo").encode_targets({"photo": ["x", "y", "x", None]}, ids)["group"]
    assert named[0] == named[2] and len(set(named.tolist())) == 3
    assert (make().encode_targets({}, ids)["group"] == group).all()


def test_rows_of_a_group_are_positives_and_missing_modalities_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(4, 4, generator=generator, requires_grad=True) for _ in range(2))
    presence = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]]).bool()
    group = torch.tensor([5, 5, 9, 7])
    task = make()
    output = task({"inputs": view({"text": text, "image": image}, presence)}, {"group": group})
    logits = F.normalize(text[:3], dim=1) @ F.normalize(image[:3], dim=1).T / 0.07
    wanted = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    expected = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert text.grad is not None and (text.grad[3] == 0).all() and (text.grad[:3] != 0).any()
    assert set(output.predictions) == {"text", "image"}
    assert output.predictions["image"][3].isnan().all() and not output.predictions["text"].isnan().any()


def by_hand(queries: np.ndarray, gallery: np.ndarray, q_group: list[int], g_group: list[int]) -> list[int]:
    """Rank of the first of its group, for each query."""
    ranks = []
    for vector, group in zip(queries, q_group, strict=True):
        cosine = [float(vector @ g / np.linalg.norm(vector) / np.linalg.norm(g)) for g in gallery]
        order = sorted(range(len(gallery)), key=lambda i: -cosine[i])
        ranks.append(1 + min(place for place, i in enumerate(order) if g_group[i] == group))
    return ranks


def test_retrieval_by_groups_as_in_a_plain_loop() -> None:
    """12 photos with 3 captions each, as exploding makes them: the photo is there three times and counts once."""
    rng = np.random.default_rng(0)
    photos = rng.normal(size=(12, 8)).astype(np.float32)
    captions = (photos.repeat(3, 0) + rng.normal(0, 1.5, (36, 8))).astype(np.float32)
    group = np.arange(12).repeat(3) + 100
    image = photos.repeat(3, 0) + rng.normal(0, 1e-7, (36, 8)).astype(np.float32)
    captions[4] = np.nan  # a row without its text
    found = make().score({"text": captions, "image": image}, {"group": group})
    told = ~np.isnan(captions[:, 0])
    to_image = by_hand(captions[told], photos, group[told].tolist(), list(range(100, 112)))
    to_text = by_hand(photos, captions[told], list(range(100, 112)), group[told].tolist())
    for way, ranks, size in (("text>image", to_image, 12), ("image>text", to_text, 35)):
        for k in (1, 5, 10):
            assert found[f"r@{k}/{way}"] == pytest.approx(np.mean([rank <= k for rank in ranks])), (k, way)
        assert found[f"median_rank/{way}"] == pytest.approx(np.median(ranks))
        assert found[f"gallery/{way}"] == size
    assert found["mean_r@10"] == pytest.approx((found["r@10/text>image"] + found["r@10/image>text"]) / 2)


def test_a_modality_that_no_row_has_leaves_its_figures_out() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4)).astype(np.float32)
    task = make(inputs={"text": "t", "image": "i", "audio": "a"})
    gone = np.full_like(x, np.nan)
    found = task.score({"text": x, "image": x, "audio": gone}, {"group": np.arange(12)})
    assert found["mean_r@10"] == found["r@1/text>image"] == 1.0
    assert not any("audio" in name for name in found)
    assert task.score({"text": gone, "image": gone, "audio": gone}, {"group": np.arange(12)}) == {"mean_r@10": 0.0}
