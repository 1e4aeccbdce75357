"""The model: what a row's result depends on, and what it must not."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.augment import AudioAugment, ImageAugment
from mmbm_core.encoders.base import EncoderOutput
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.encoders.log_mel import LogMelConfig, LogMelEncoder
from mmbm_core.encoders.segments import segment_tokens
from mmbm_core.fusion import FUSIONS
from mmbm_core.model import Batch, Model, Values, mean_of_units, tokens_of
from mmbm_core.spec import EncoderConfig, ModelSpec
from mmbm_core.tasks.base import IGNORED
from tests.training import COLORS, color_png, pitch_wav

VIEW = {"image": "image", "audio": "audio"}
TASK = {"kind": "recognition", "inputs": VIEW, "label": "label", "labels": ["a", "b", "c"]}
ROWS = [VIEW, {"image": "image"}, {"audio": "audio"}, VIEW, {}]


def make(*, fusion: str | None = "attention", seed: int = 0, task: Mapping[str, Any] = TASK, **given: Any) -> Model:
    torch.manual_seed(seed)
    encoders = {
        "image": ImageCnnEncoder(ImageCnnConfig(size_px=16, widths=(8, 16), depths=(0, 0))),
        "audio": LogMelEncoder(LogMelConfig(rate_hz=8000, num_mels=16, widths=(8, 8), width=24)),
    }
    spec = {
        "encoders": {m: {"model": m, "training": "full", "tokens": given.pop("tokens", 1)} for m in encoders},
        "width": 32, "fusion": fusion and {"kind": fusion}, "tasks": {"t": task}, **given,
    }  # fmt: skip
    model = Model(
        ModelSpec.model_validate(spec), widths={m: e.width for m, e in encoders.items()}, encoders=encoders
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and not name.startswith("encoders"):
                weight.normal_(0, 0.3)
    return model


def batch(model: Model, rows: list[int], *, order: tuple[str, ...] = ("image", "audio")) -> Batch:
    """Rows of ROWS by number: their pictures and sounds."""
    values = {}
    for modality in order:
        here = [i for i, row in enumerate(rows) if modality in ROWS[row]]
        names = [list(COLORS)[rows[i] % 3] for i in here]
        if modality == "image":
            media = [color_png(name, rows[i]) for name, i in zip(names, here, strict=True)]
        else:
            media = [pitch_wav(name, rows[i], seconds=0.1 + rows[i] / 20) for name, i in zip(names, here, strict=True)]
        encoder: Any = model.encoders[modality]
        items = encoder.prepare(modality, media)
        data = [encoder.collate(modality, items)] if items else []
        values[modality, modality] = Values(torch.tensor(here, dtype=torch.int64), data)
    targets = {name: {"label": torch.tensor([row % 3 for row in rows])} for name in model.tasks}
    return Batch([str(r) for r in rows], values, targets)


def logits(model: Model, made: Batch, **given: Any) -> torch.Tensor:
    with torch.inference_mode():
        encoded = model.encode_batch(made)
        return model.heads(made, encoded, **given)["t"].predictions["logits"]


@pytest.mark.parametrize("fusion", [*FUSIONS, None])
@pytest.mark.parametrize("tokens", [1, 3, "all"])
def test_a_row_is_worth_the_same_in_every_batch(fusion: str | None, tokens: int | str) -> None:
    model = make(fusion=fusion, tokens=tokens)
    whole = logits(model, batch(model, [0, 1, 2, 3]))
    for rows in ([3, 2, 1, 0], [0, 3], [1, 1, 2], [2], [1]):
        for order in (("image", "audio"), ("audio", "image")):
            torch.testing.assert_close(
                logits(model, batch(model, rows, order=order)), whole[rows], atol=1e-5, rtol=1e-4
            )
    assert len({tuple(row.tolist()) for row in whole.round(decimals=4)}) == 4


@pytest.mark.parametrize("fusion", [*FUSIONS, None])
def test_a_hidden_modality_is_one_that_is_missing(fusion: str | None) -> None:
    model = make(fusion=fusion)
    both = batch(model, [0, 3])
    for only in ("image", "audio"):
        hidden = logits(model, both, only=(only,))
        without = both._replace(values={key: v for key, v in both.values.items() if key[0] == only})
        torch.testing.assert_close(hidden, logits(model, without), atol=0, rtol=0)
        with torch.inference_mode():
            encoded = model.encode_batch(both, only=(only,))
            assert {m for m, _ in encoded} == {only}
            torch.testing.assert_close(model.heads(both, encoded)["t"].predictions["logits"], hidden, atol=0, rtol=0)
    none = logits(model, batch(model, [4, 4]))  # neither: finite, and the same for all
    assert none.isfinite().all()
    torch.testing.assert_close(none[0], none[1])


def test_training_hides_modalities_as_if_they_were_missing() -> None:
    """The learnt token stands for what is missing in training as in evaluation, where there is no other dropout."""
    model = make(fusion="gated", modality_dropout=0.6)
    made = batch(model, [0, 3] * 20)
    with torch.no_grad():
        encoded = model.encode_batch(made)
        shown = {only: model.heads(made, encoded, only=only)["t"].predictions["logits"]
                 for size in (1, 2) for only in combinations(VIEW, size)}  # fmt: skip
        model.train()
        for encoder in model.encoders.values():
            encoder.eval()
        dropped = model.heads(made, encoded, generator=torch.Generator().manual_seed(0))["t"].predictions["logits"]
        again = model.heads(made, encoded, generator=torch.Generator().manual_seed(0))["t"].predictions["logits"]
        kept = model.heads(made, encoded)["t"].predictions["logits"]
    torch.testing.assert_close(kept, shown["image", "audio"])
    assert torch.equal(dropped, again)
    matches = {only: torch.isclose(dropped, each, atol=1e-5).all(1) for only, each in shown.items()}
    counts = {only: int(match.sum()) for only, match in matches.items()}
    assert torch.stack(list(matches.values())).sum(0).eq(1).all(), "every row lost one modality or none, of its own"
    assert all(count > 3 for count in counts.values())


def test_own_logits_are_added_where_their_modality_is() -> None:
    model = make(task=TASK | {"unimodal_logits": True})
    made = batch(model, [0, 1, 2])
    with torch.inference_mode():
        found = model.heads(made, model.encode_batch(made))["t"].predictions
    plain = make(task=TASK)
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if ".own." not in n})
    joint = logits(plain, made)
    image, audio = found["logits of image"], found["logits of audio"]
    torch.testing.assert_close(found["logits"][0], joint[0] + image[0] + audio[0])
    torch.testing.assert_close(found["logits"][1], joint[1] + image[1])
    torch.testing.assert_close(found["logits"][2], joint[2] + audio[2])


def test_training_changes_values_and_scoring_does_not() -> None:
    model = make()
    made = batch(model, [0, 1, 2, 3])
    assert model(made)["t"].loss == model(made)["t"].loss
    plain = model(made)["t"].predictions["logits"]
    model.encoders["image"].augment = ImageAugment(brightness=0.5)  # type: ignore[assignment]
    model.encoders["audio"].augment = AudioAugment(shift_s=0.2)  # type: ignore[assignment]
    assert torch.equal(model(made)["t"].predictions["logits"], plain)
    torch.manual_seed(0)
    changed = model.augment(made)
    torch.manual_seed(0)
    again = model.augment(made)
    for column, values in changed.values.items():
        first, other, before = (each[column].data[0] for each in (changed.values, again.values, made.values))
        if column[0] == "audio":
            first, other, before = first.samples, other.samples, before.samples
            assert first.shape[1] > before.shape[1]
        assert torch.equal(first, other) and torch.equal(values.rows, made.values[column].rows)
        assert first.shape != before.shape or not torch.equal(first, before)


def test_images_are_mixed_across_the_parts_that_they_are_encoded_in() -> None:
    model = make(task={**TASK, "labels": list("abcdefgh"), "inputs": {"image": "image"}, "mix": {"mixup": 1.0}})
    made = batch(model, [0, 1, 2, 3, 4, 0, 1, 3])
    label = torch.tensor([IGNORED, 1, 2, 3, 4, 5, 6, 7])
    rows, (images,) = made.values["image", "image"]
    values = made.values | {("image", "image"): Values(rows, images.split([3, 3]))}
    made = made._replace(values=values, targets={"t": {"label": label}})
    torch.manual_seed(0)
    changed = model.augment(made)
    parts, soft = changed.values["image", "image"].data, changed.targets["t"]["soft"]
    assert [len(part) for part in parts] == [3, 3]
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert sum(torch.count_nonzero(row) == 2 for row in soft) >= 3
    by_label = torch.zeros(8, *images.shape[1:]).index_copy(0, label[rows].clamp(min=0), images.float())
    wanted = torch.einsum("nc,cijk->nijk", soft[rows], by_label)
    torch.testing.assert_close(torch.cat(list(parts)), wanted, atol=1e-3, rtol=0)
    assert torch.equal(parts[0][0], images[0].float())  # without a class
    assert "soft" not in made.targets["t"]


def test_tokens_of_an_encoder() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    output = EncoderOutput(torch.randn(2, 6, 5), mask, torch.randn(2, 5))
    one, one_mask = tokens_of(output, EncoderConfig(model="x"))
    torch.testing.assert_close(one[:, 0], output.vector)
    assert one_mask.shape == (2, 1) and one_mask.all()
    two, _ = tokens_of(output, EncoderConfig(model="x", tokens=2))
    torch.testing.assert_close(two, segment_tokens(output, 2))
    torch.testing.assert_close(two[0, 0], output.tokens[0, :3].mean(0))
    torch.testing.assert_close(two[1, 1], output.tokens[1, 2:4].mean(0))
    everything, same = tokens_of(output, EncoderConfig(model="x", tokens="all"))
    assert everything is output.tokens and same is mask


def test_stored_tokens_do_as_well_as_the_encoder() -> None:
    model = make(tokens=2)
    made = batch(model, [0, 1, 2, 3])
    stored = {}
    with torch.inference_mode():
        for (modality, column), values in made.values.items():
            stored[modality, column] = values._replace(
                data=tokens_of(model.encoders[modality](modality, values.data[0]), model.spec.encoders[modality])[0]  # type: ignore[index]
            )
        whole = logits(model, made)
        model.encoders = torch.nn.ModuleDict()
        torch.testing.assert_close(logits(model, made._replace(values=stored)), whole, atol=1e-5, rtol=1e-5)


def test_without_a_fusion_it_is_the_mean_of_unit_vectors() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4)).astype(np.float32)
    present = {"image": torch.tensor([True, True, False]), "audio": torch.tensor([True, False, False])}
    vectors = {"image": torch.from_numpy(a), "audio": torch.from_numpy(b)}
    found = mean_of_units(vectors, present, torch.zeros(3, 4)).numpy()  # type: ignore[arg-type]
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    np.testing.assert_allclose(found[0], unit(unit(a[0]) + unit(b[0])), atol=1e-6)
    np.testing.assert_allclose(found[1], unit(a[1]), atol=1e-6)
    assert (found[2] == 0).all()
