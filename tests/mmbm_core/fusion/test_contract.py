"""What all fusions hold: any subset of modalities, in any company, gives a row the same result."""

import itertools
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mmbm_core.fusion import FUSIONS, Fused, Fusion, FusionConfig, build_fusion
from mmbm_core.sample import MODALITIES

WIDTH = 16
SETS = [MODALITIES[:1], ("audio", "text"), MODALITIES]

every_fusion = pytest.mark.parametrize(
    ("kind", "modalities"), list(itertools.product(FUSIONS, SETS)), ids=lambda value: str(value)
)
every_kind = pytest.mark.parametrize("kind", FUSIONS)


def _build(kind: str, modalities: tuple[str, ...] = MODALITIES, *, seed: int = 0, **options: Any) -> Fusion:
    torch.manual_seed(seed)
    config = TypeAdapter(FusionConfig).validate_python({"kind": kind, **options})
    return build_fusion(config, modalities=modalities, width=WIDTH).eval()


def _subsets(fusion: Fusion) -> list[list[bool]]:
    """All 2^M - 1 rows of presence."""
    return [list(row) for row in itertools.product([True, False], repeat=len(fusion.modalities)) if any(row)]


def _loss(fused: Fused) -> Tensor:
    """A number that each real output moves."""
    real = fused.tokens[fused.mask]
    weights = torch.randn(real.numel() + fused.pooled.numel(), generator=torch.Generator().manual_seed(1))
    return weights @ torch.cat([real.flatten(), fused.pooled.flatten()])


def _gradients(fusion: Fusion, fused: Fused) -> dict[str, Tensor]:
    fusion.zero_grad()
    _loss(fused).backward()
    return {name: p.grad.clone() for name, p in fusion.named_parameters() if p.grad is not None}


@every_fusion
def test_shapes(kind: str, modalities: tuple[str, ...], make_batch: Any) -> None:
    fusion = _build(kind, modalities)
    fused = fusion(*make_batch(fusion.modalities, _subsets(fusion)))
    num_rows, num_tokens = fused.mask.shape
    assert num_rows == 2 ** len(modalities) - 1
    assert fused.tokens.shape == (num_rows, num_tokens, WIDTH)
    assert fused.pooled.shape == (num_rows, WIDTH)
    assert fused.mask.dtype == torch.bool
    assert fused.mask.any(1).all()


@every_fusion
def test_a_row_alone_and_in_company(kind: str, modalities: tuple[str, ...], make_batch: Any) -> None:
    """Cut to its own lengths, missing modalities left out, the mappings reversed; then padded further."""
    fusion = _build(kind, modalities).double()
    batch = make_batch(fusion.modalities, _subsets(fusion), dtype=torch.float64)
    together = fusion(*batch)
    for row, has in enumerate(batch.presence):
        names = [name for name, here in zip(fusion.modalities, has, strict=True) if here][::-1]
        tokens = {name: batch.tokens[name][row][batch.masks[name][row]][None] for name in names}
        masks = {name: torch.ones(value.shape[:2], dtype=torch.bool) for name, value in tokens.items()}
        _same(together, row, fusion(tokens, masks, has[None]))
        tokens = {name: nn.functional.pad(value, (0, 0, 0, 7), value=1e6) for name, value in tokens.items()}
        masks = {name: nn.functional.pad(mask, (0, 7)) for name, mask in masks.items()}
        _same(together, row, fusion(tokens, masks, has[None]))


def _same(together: Fused, row: int, alone: Fused) -> None:
    """In float64: the rounding of float32 alone, which depends on shapes, reaches 1e-6."""
    torch.testing.assert_close(alone.pooled[0], together.pooled[row], atol=1e-9, rtol=0)
    ours, theirs = alone.tokens[0][alone.mask[0]], together.tokens[row][together.mask[row]]
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@every_fusion
def test_what_stands_in_for_no_token_changes_nothing(kind: str, modalities: tuple[str, ...], make_batch: Any) -> None:
    """NaN in place of missing and padded tokens: the same outputs and gradients, none of them back to the NaN."""
    fusion = _build(kind, modalities)
    batch = make_batch(fusion.modalities, _subsets(fusion))
    spoiled = {}
    for i, name in enumerate(fusion.modalities):
        real = batch.masks[name] & batch.presence[:, [i]]
        spoiled[name] = torch.where(real[..., None], batch.tokens[name], torch.nan).requires_grad_()
    clean, fused = fusion(*batch), fusion(spoiled, batch.masks, batch.presence)
    expected = _gradients(fusion, clean)
    found = _gradients(fusion, fused)
    torch.testing.assert_close(fused.pooled, clean.pooled)
    assert fused.tokens.isfinite().all()
    torch.testing.assert_close(found, expected)
    for value in spoiled.values():
        assert value.grad is not None
        assert (value.grad[value.isnan()] == 0).all()
        assert (value.grad[~value.isnan()] != 0).any()


@every_fusion
def test_every_parameter_learns(kind: str, modalities: tuple[str, ...], make_batch: Any) -> None:
    """Over all subsets; a learned token of a fusion of one modality has no subset in which it could."""
    fusion = _build(kind, modalities)
    gradients = _gradients(fusion, fusion(*make_batch(fusion.modalities, _subsets(fusion))))
    unmoved = {name for name, _ in fusion.named_parameters() if not gradients[name].any()}
    assert unmoved == ({"missing.text"} if len(modalities) == 1 else set())


@every_kind
def test_every_parameter_has_a_gradient_in_every_batch(kind: str, make_batch: Any) -> None:
    """Zero perhaps, but there: training in several processes waits for the gradient of every parameter."""
    fusion = _build(kind)
    batch = make_batch(("image",), [[False, True, False]])
    assert set(_gradients(fusion, fusion(*batch))) == {name for name, _ in fusion.named_parameters()}


@every_fusion
def test_saved_and_loaded(kind: str, modalities: tuple[str, ...], make_batch: Any) -> None:
    """All that shapes an output is in the state: a plain list of factors would stay behind."""
    fusion, other = _build(kind, modalities), _build(kind, modalities, seed=1)
    batch = make_batch(fusion.modalities, _subsets(fusion))
    assert not torch.equal(other(*batch).pooled, fusion(*batch).pooled)
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(other(*batch).pooled, fusion(*batch).pooled)
    assert torch.equal(other(*batch).tokens, fusion(*batch).tokens)


@every_kind
def test_the_learned_token_stands_in_for_a_missing_modality_only(kind: str, make_batch: Any) -> None:
    fusion = _build(kind)
    batch = make_batch(MODALITIES, _subsets(fusion))
    before = fusion(*batch)
    with torch.no_grad():
        fusion.missing["image"].add_(1.0)
    after = fusion(*batch)
    lacks = ~batch.presence[:, 1]
    moved = ~torch.isclose(after.tokens, before.tokens).all(-1) & before.mask
    assert torch.equal(moved.any(1), lacks)


@every_kind
def test_training_evaluation_and_serving_agree(kind: str, make_batch: Any) -> None:
    """Without dropout; torch has kernels of its own for inference, which must not change the result."""
    options = {"dropout": 0.0} if kind not in ("gated", "low_rank") else {}
    fusion = _build(kind, **options).double()
    batch = make_batch(MODALITIES, _subsets(fusion), dtype=torch.float64)
    batch.masks["text"][:, 3:] = False  # columns that are padding in all rows stay
    trained = fusion.train()(*batch)
    evaluated = fusion.eval()(*batch)
    with torch.inference_mode():
        served = fusion(*batch)
    for fused in (evaluated, served):
        assert torch.equal(fused.mask, trained.mask)
        torch.testing.assert_close(fused.tokens, trained.tokens, atol=1e-9, rtol=0)
        torch.testing.assert_close(fused.pooled, trained.pooled, atol=1e-9, rtol=0)


@every_kind
def test_a_modality_without_a_token_is_missing(kind: str, make_batch: Any) -> None:
    fusion = _build(kind)
    batch = make_batch(MODALITIES, [[True, True, True]])
    batch.masks["text"][:] = False
    empty = fusion(*batch)
    missing = fusion(batch.tokens, batch.masks, torch.tensor([[False, True, True]]))
    assert torch.equal(empty.pooled, missing.pooled)
    assert torch.equal(empty.mask, missing.mask)


@every_kind
def test_a_row_without_any_modality_spoils_no_gradient(kind: str, make_batch: Any) -> None:
    fusion = _build(kind)
    fused = fusion(*make_batch(MODALITIES, [[False, False, False], [True, True, False]]))
    assert fused.pooled.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in _gradients(fusion, fused).values())


@every_kind
def test_modalities_in_any_order_are_one_fusion(kind: str, make_batch: Any) -> None:
    forwards, backwards = _build(kind, MODALITIES), _build(kind, MODALITIES[::-1])
    assert backwards.modalities == MODALITIES
    batch = make_batch(MODALITIES, _subsets(forwards))
    assert torch.equal(forwards(*batch).pooled, backwards(*batch).pooled)


@every_kind
@pytest.mark.parametrize("modalities", [(), ("text", "text"), ("text", "smell"), "text"])
def test_refuses_modalities(kind: str, modalities: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"one or more of text, image, audio, each once; got"):
        _build(kind, modalities)


def test_one_config_a_kind() -> None:
    configs = get_args(get_args(FusionConfig)[0])
    assert [config.model_fields["kind"].default for config in configs] == list(FUSIONS)


def test_an_unknown_kind_names_the_known() -> None:
    with pytest.raises(ValidationError, match="'concat', 'gated', 'attention', 'bottleneck', 'low_rank'"):
        TypeAdapter(FusionConfig).validate_python({"kind": "sum"})


@every_kind
def test_configs_are_frozen_and_closed(kind: str) -> None:
    config = TypeAdapter(FusionConfig).validate_python({"kind": kind})
    with pytest.raises(ValidationError, match="frozen"):
        config.kind = "other"
    with pytest.raises(ValidationError, match="widht"):
        TypeAdapter(FusionConfig).validate_python({"kind": kind, "widht": 3})
