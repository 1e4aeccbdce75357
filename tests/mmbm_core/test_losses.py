"""Losses equal their papers' formulas written as loops; two training processes equal one with the whole batch."""

import math
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmbm_core.errors import UsageError
from mmbm_core.losses import ContrastiveConfig, ContrastiveLoss, info_nce, sequence_nll, siglip

GROUPS = torch.tensor([7, 3, 7, 0, 3, 7])


def _unit(seed: int, *shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def _info_nce_loops(x: np.ndarray, y: np.ndarray, scale: float, groups: np.ndarray) -> float:
    """SupCon's L_out from each side: for every anchor the mean over its positives of -log softmax."""
    total = 0.0
    for queries, keys in ((x, y), (y, x)):
        for i, query in enumerate(queries):
            scores = [scale * float(query @ key) for key in keys]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            positives = [j for j in range(len(keys)) if groups[j] == groups[i]]
            total += sum(log_sum - scores[j] for j in positives) / len(positives)
    return total / (2 * len(x))


def _siglip_loops(x: np.ndarray, y: np.ndarray, scale: float, bias: float, groups: np.ndarray) -> float:
    total = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            z = 1 if groups[i] == groups[j] else -1
            total += math.log(1 / (1 + math.exp(-z * (scale * float(x[i] @ y[j]) + bias))))
    return -total / len(x)


def test_info_nce_is_the_cross_entropy_of_the_own_row() -> None:
    x, y = _unit(0, 6, 5), _unit(1, 6, 5)
    logits, own = 14.0 * x @ y.T, torch.arange(6)
    expected = (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(info_nce(x, y, scale=14.0), expected)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_losses_equal_loops(groups: Tensor | None) -> None:
    x, y = _unit(2, 6, 5), _unit(3, 6, 5)
    labels = np.arange(6) if groups is None else groups.numpy()
    found = info_nce(x, y, scale=9.0, groups=groups).item()
    assert found == pytest.approx(_info_nce_loops(x.numpy(), y.numpy(), 9.0, labels), rel=1e-12)
    found = siglip(x, y, scale=9.0, bias=-4.0, groups=groups).item()
    assert found == pytest.approx(_siglip_loops(x.numpy(), y.numpy(), 9.0, -4.0, labels), rel=1e-12)


def test_sequence_nll_is_of_the_real_tokens_of_each_row() -> None:
    logits = 3 * torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    targets = torch.tensor([[1, 4, 0, 0], [2, 0, 3, 3]])
    log_p = (logits.exp() / logits.exp().sum(-1, keepdim=True)).log().numpy()
    real = [[(t, int(targets[b, t])) for t in range(4) if targets[b, t] != 0] for b in range(2)]
    plain = [-sum(log_p[b, t, v] for t, v in real[b]) for b in range(2)]
    even = [-sum(log_p[b, t].mean() for t, _ in real[b]) for b in range(2)]
    for smoothing in (0.0, 0.1):
        nll, smoothed = sequence_nll(logits, targets, ignore=0, label_smoothing=smoothing)
        assert nll.tolist() == pytest.approx(plain)
        assert smoothed.tolist() == pytest.approx(
            [(1 - smoothing) * p + smoothing * e for p, e in zip(plain, even, strict=True)]
        )


def test_sequence_nll_learns_as_torch_has_it() -> None:
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 4, 0, 0], [2, 0, 3, 3], [0, 0, 0, 0]])
    sequence_nll(logits, targets, ignore=0, label_smoothing=0.2)[1].sum().backward()
    found, logits.grad = logits.grad, None
    flat = logits.flatten(0, 1)
    F.cross_entropy(flat, targets.flatten(), ignore_index=0, reduction="sum", label_smoothing=0.2).backward()
    torch.testing.assert_close(found, logits.grad, rtol=1e-12, atol=1e-12)


def test_sequence_nll_of_padding_alone_is_zero() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    nll, smoothed = sequence_nll(logits, torch.full((2, 3), -100), ignore=-100)
    smoothed.sum().backward()
    assert not nll.any() and not smoothed.any()
    assert logits.grad is not None and not logits.grad.any()


def _batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    vectors = {name: 3 * _unit(seed, 6, 4) for seed, name in enumerate(("text", "image", "audio"), start=5)}
    presence = {
        "text": torch.tensor([True, True, False, True, False, True]),
        "image": torch.tensor([True, True, True, True, False, True]),
        "audio": torch.tensor([False, True, True, True, True, False]),
    }  # text and audio share two rows: as few as make a loss
    return vectors, presence


def _loss(kind: Any, pairs: Any = None) -> ContrastiveLoss:
    config = ContrastiveConfig(kind=kind, pairs=pairs)
    return ContrastiveLoss(config, modalities=("text", "image", "audio")).double()


@pytest.mark.parametrize("kind", ["info_nce", "siglip"])
@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("pairs", [None, (("audio", "text"), ("image", "text"))])
def test_pairs_add_up_on_the_rows_that_have_both(kind: str, groups: Tensor | None, pairs: Any) -> None:
    vectors, presence = _batch()
    loss = _loss(kind, pairs)
    with torch.no_grad():  # a scale and a bias of each pair's own
        loss.log_scale += torch.arange(len(loss.pairs)) / 2
        if loss.bias is not None:
            loss.bias += torch.arange(len(loss.pairs))
    expected = 0.0
    for k, (a, b) in enumerate(pairs or combinations(vectors, 2)):
        both = (presence[a] & presence[b]).numpy()
        x, y = (vectors[name].numpy()[both] / 3 for name in (a, b))
        labels = (np.arange(6) if groups is None else groups.numpy())[both]
        if kind == "info_nce":
            expected += _info_nce_loops(x, y, math.exp(k / 2) / 0.07, labels)
        else:
            expected += _siglip_loops(x, y, math.exp(k / 2) * 10, k - 10, labels)
    assert loss(vectors, presence, groups).item() == pytest.approx(expected, rel=1e-6)  # parameters begin in float32


@pytest.mark.parametrize("kind", ["info_nce", "siglip"])
def test_vectors_of_missing_modalities_do_not_matter(kind: str) -> None:
    vectors, presence = _batch()
    loss, grads = _loss(kind), []
    for filler in (0.0, math.nan):
        filled = {m: torch.where(presence[m][:, None], x, filler).requires_grad_() for m, x in vectors.items()}
        value = loss(filled, presence)
        grads.append((value, *torch.autograd.grad(value, [*filled.values()])))
    for zero, nan in zip(*grads, strict=True):
        torch.testing.assert_close(nan, zero)


def test_a_modality_left_out_equals_one_that_no_row_has() -> None:
    vectors, presence = _batch()
    nowhere = presence | {"audio": torch.zeros(6, dtype=torch.bool)}
    left_out = {name: vectors[name] for name in ("image", "text")}
    loss = _loss("siglip")
    torch.testing.assert_close(loss(left_out, presence), loss(vectors, nowhere))
    torch.testing.assert_close(loss(left_out, presence), _loss("siglip", (("text", "image"),))(vectors, presence))


@pytest.mark.parametrize("kind", ["info_nce", "siglip"])
@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_pair_of_too_few_rows_is_zero_with_a_gradient_path(kind: str, num_rows: int) -> None:
    x = _unit(9, 6, 4).requires_grad_()
    some = torch.arange(6) < num_rows
    loss = _loss(kind, (("text", "image"),))
    value = loss({"text": x, "image": torch.full((6, 4), math.nan)}, {"text": some | True, "image": some & False})
    value = value + loss({"text": x, "image": _unit(8, 6, 4)}, {"text": some, "image": some})
    value.backward()
    assert value.item() == 0
    for tensor in (x, *loss.parameters()):
        assert tensor.grad is not None and not tensor.grad.any()


def test_the_scale_of_info_nce_stays_at_100_and_still_learns() -> None:
    vectors, presence = _batch()
    loss = _loss("info_nce", (("text", "image"),))
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    value = loss(vectors, presence)
    value.backward()
    both = presence["text"] & presence["image"]
    torch.testing.assert_close(value, info_nce(vectors["text"][both] / 3, vectors["image"][both] / 3, scale=100.0))
    assert loss.log_scale.item() == pytest.approx(math.log(100))
    assert loss.log_scale.grad is not None and loss.log_scale.grad.item() > 0


def test_unusable_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"name video; the model has text, image, audio"):
        _loss("siglip", (("text", "video"),))
    with pytest.raises(UsageError, match="needs a pair"):
        ContrastiveLoss(ContrastiveConfig(), modalities=["text"])
    for pairs in ((("text", "text"),), (("text", "image"), ("image", "text"))):
        with pytest.raises(ValueError, match="no pair comes twice"):
            ContrastiveConfig(pairs=pairs)


# Two processes, rows r::2 each. Rows that lack a modality are NaN there.
ONLY_FIRST = torch.tensor([True, False] * 3)
SOUNDS = {"pairs": [("text", "audio")], "audio": ONLY_FIRST, "text": torch.ones(6, dtype=torch.bool)}
CASES: dict[str, dict[str, Any]] = {
    "info_nce": {"kind": "info_nce"},
    "siglip, groups": {"kind": "siglip", "groups": GROUPS},
    "info_nce, groups": {"kind": "info_nce", "groups": GROUPS},
    "the second process has no sound": {"kind": "siglip", "audio": ONLY_FIRST},
    "the second process has nothing that learns": {"kind": "info_nce"} | SOUNDS,
    "no process has a pair": {"kind": "siglip"} | SOUNDS | {"audio": ONLY_FIRST & False},
}


def _train_step(case: dict[str, Any], rows: slice) -> dict[str, Tensor]:
    """Loss and gradients with one linear encoder a modality; that of text is frozen."""
    inputs, presence = _batch()
    presence = {name: case.get(name, present) for name, present in presence.items()}
    loss = _loss(case["kind"], case.get("pairs"))
    weights = {name: nn.Parameter(_unit(20 + i, 4, 4), requires_grad=i > 0) for i, name in enumerate(inputs)}
    vectors = {}
    for name, x in inputs.items():
        present = presence[name][rows]
        if present.any():
            vectors[name] = torch.where(present[:, None], x[rows] @ weights[name], math.nan)
    groups = case["groups"][rows] if "groups" in case else None
    value = loss(vectors, {name: present[rows] for name, present in presence.items()}, groups)
    value.backward()
    learned = {name: weights[name] for name in ("image", "audio")} | dict(loss.named_parameters())
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learned.items()}
    return {"loss": value.detach(), **grads}


def _process(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save({name: _train_step(case, slice(rank, None, 2)) for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each process found, by case. One start for all cases: importing torch takes seconds."""
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, two_processes: list[dict[str, dict[str, Tensor]]]) -> None:
    alone = _train_step(CASES[name], slice(None))
    first, second = (found[name] for found in two_processes)
    assert (alone["loss"] != 0) == (name != "no process has a pair")
    for key, expected in alone.items():
        torch.testing.assert_close((first[key] + second[key]) / 2, expected, msg=key)
    torch.testing.assert_close(first["loss"], second["loss"])
