"""Units that are taken out leave what zeroed units leave, in every network that has units."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmbm_core.bpe import train_bpe
from mmbm_core.compress.layout import apply_layout, keep_layers, layout_of
from mmbm_core.compress.pruning import Group, Importance, keep_units, layer_lists, prune, sizes_for, transformer_groups
from mmbm_core.compress.stored import finish_network, is_packed, load_network
from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.bert import BertConfig, build_bert
from mmbm_core.encoders.cnn import efficientnet_lite0
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.encoders.log_mel import LogMelConfig, LogMelEncoder
from mmbm_core.errors import UsageError
from mmbm_core.fusion import build_fusion
from mmbm_core.fusion.attention import AttentionConfig
from tests.samples import audio_file, image_file, tone
from tests.seq2seq import TEXTS, make_task, make_view

Case = tuple[nn.Module, list[Group], Callable[[nn.Module], Tensor]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _encoder_case(encoder: Any, modality: Any, values: list[Any]) -> Case:
    torch.manual_seed(1)
    for each in encoder.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):  # else all channels are alike
            for tensor in (each.weight.data, each.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (each.bias.data, each.running_mean):
                tensor.normal_(0, 0.3)
    encoder = encoder.eval()
    batch = encoder.collate(modality, encoder.prepare(modality, values))
    return encoder, encoder.groups(), lambda m: m(modality, batch).vector


def _texts(text_model: str) -> Case:
    return _encoder_case(build_encoder(text_model), "text", ["a red disc", "seven green rings under one star"])


def _bert(text_model: str) -> Case:
    config = BertConfig(vocab_size=300, max_tokens=16, width=32, layers=2, heads=4, dropout=0.0)
    return _encoder_case(build_bert(config, tokenizer=train_bpe(TEXTS * 3, vocab_size=300)), "text", TEXTS[:3])


def _clip(text_model: str) -> Case:
    from tests.checkpoints import save_clip

    folder = Path(text_model).parent / "clip-to-prune"
    return _encoder_case(build_encoder(save_clip(folder)), "image", [image_file(seed=i) for i in range(2)])


def _image_cnn(text_model: str) -> Case:
    encoder = ImageCnnEncoder(ImageCnnConfig(size_px=16, widths=(16, 24, 16), depths=(1, 2, 0)))
    return _encoder_case(encoder, "image", [image_file(seed=i) for i in range(3)])


def _lite0(text_model: str) -> Case:
    torch.manual_seed(0)
    return _encoder_case(efficientnet_lite0(size_px=32), "image", [image_file(seed=i) for i in range(2)])


def _log_mel(text_model: str) -> Case:
    config = LogMelConfig(rate_hz=8000, num_mels=16, widths=(16, 24), width=16, layers=1, heads=2, dropout=0.0)
    waves = [tone(seconds=s, rate_hz=8000, pitch_hz=200 + 300 * s) for s in (0.2, 0.4)]
    return _encoder_case(LogMelEncoder(config), "audio", [audio_file(wave=w, rate_hz=8000) for w in waves])


def _fusion(text_model: str) -> Case:
    torch.manual_seed(0)
    fusion = build_fusion(AttentionConfig(layers=2, heads=2), modalities=("text", "image"), width=16).eval()
    tokens = {m: torch.randn(3, 2, 16) for m in ("text", "image")}
    masks = {m: torch.ones(3, 2, dtype=torch.bool) for m in tokens}
    presence = torch.tensor([[True, True], [True, False], [False, True]])
    return fusion, transformer_groups(fusion), lambda m: m(tokens, masks, presence).pooled


def _decoder(text_model: str) -> Case:
    decoder = make_task().decoder
    labels = torch.from_numpy(decoder.encode(TEXTS[:3]))
    view = make_view(3).fused
    return decoder, transformer_groups(decoder), lambda m: m(view.tokens, view.mask, labels)


CASES = {
    "bert checkpoint": _texts, "bert from scratch": _bert, "clip": _clip, "image_cnn": _image_cnn, "lite0": _lite0,
    "log_mel": _log_mel, "fusion": _fusion, "decoder": _decoder,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pruned_units_are_zeroed_units(name: str, text_model: str) -> None:
    module, groups, run = CASES[name](text_model)
    assert groups
    zeroed, pruned = deepcopy(module), deepcopy(module)
    random = torch.Generator().manual_seed(0)
    for group in groups:
        kept = torch.randperm(group.units, generator=random)[: max(1, group.units // 2)].sort().values
        _zero(zeroed, group, kept)
        keep_units(pruned, group, kept)
    with torch.no_grad():
        whole, expected, found = run(module), run(zeroed), run(pruned)
    assert torch.isfinite(whole).all() and not torch.allclose(whole, expected, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert _size(pruned) < _size(module)


def _zero(module: nn.Module, group: Group, kept: Tensor) -> None:
    """Without taking anything out: what reads a unit multiplies it by zero."""
    gone = torch.tensor([i not in kept.tolist() for i in range(group.units)])
    for slot in group.slots:
        if slot.reads:
            weight = module.get_submodule(slot.module).weight.data  # type: ignore[union-attr]
            columns = gone.repeat_interleave(slot.block).repeat(slot.stacks)
            weight[:, columns] = 0


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", CASES)
def test_a_layout_builds_the_pruned_module_again(name: str, text_model: str) -> None:
    module, groups, run = CASES[name](text_model)
    pruned = deepcopy(module)
    prune(pruned, Importance(pruned, groups), sizes_for(module, groups, share=0.4))
    again = deepcopy(module)
    apply_layout(again, layout_of(pruned))
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(run(again), run(pruned), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["bert checkpoint", "image_cnn", "log_mel", "decoder"])
def test_importance_is_what_the_loss_changes_by(name: str, text_model: str) -> None:
    """The first-order effect of a unit's removal, against finite differences of the loss."""
    module, groups, run = CASES[name](text_model)
    module.double()
    target = torch.randn_like(_run_double(run, module))
    module.requires_grad_(True)
    importance = Importance(module, groups)
    (_run_double(run, module) * target).sum().backward()
    importance.add()
    for group in groups[:4]:
        unit = int(importance.units(group).argmax())
        with torch.no_grad():
            lower, upper = (
                (_run_double(run, _scaled(module, group, unit, 1 + h)) * target).sum() for h in (-0.01, 0.01)
            )
        expected = ((upper - lower) / 0.02).square()
        torch.testing.assert_close(importance.units(group)[unit].double(), expected.double(), rtol=0.05, atol=1e-6)


def _scaled(module: nn.Module, group: Group, unit: int, factor: float) -> nn.Module:
    """A unit's output times a factor."""
    scaled = deepcopy(module)
    for slot in group.slots:
        if slot.reads:
            columns = (torch.arange(group.units) == unit).repeat_interleave(slot.block).repeat(slot.stacks)
            scaled.get_submodule(slot.module).weight.data[:, columns] *= factor  # type: ignore[union-attr, index]
    return scaled


def _run_double(run: Callable[[nn.Module], Tensor], module: nn.Module) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return run(module).double()


def test_whole_layers_go_and_the_most_important_stay(text_model: str) -> None:
    module, groups, run = _bert(text_model)
    lists = layer_lists(module, groups)
    assert {name: len(parts) for name, parts in lists.items()} == {"model.layers": 2}
    module.requires_grad_(True)
    importance = Importance(module, groups)
    run(module).square().sum().backward()
    importance.add()
    best = max((0, 1), key=lambda i: importance.whole(lists["model.layers"][i]))
    kept = deepcopy(module.get_submodule(f"model.layers.{best}").state_dict())  # type: ignore[union-attr]
    prune(module, importance, sizes_for(module, groups, share=0.3))
    assert len(module.get_submodule("model.layers")) == 1  # type: ignore[arg-type]
    left = module.get_submodule("model.layers.0").state_dict()
    assert all(set(left[n].flatten().tolist()) <= set(kept[n].flatten().tolist()) for n in kept)
    assert torch.isfinite(run(module)).all()


def test_kept_layers_are_the_same_when_they_are_loaded(tmp_path: Path) -> None:
    """ModernBERT's first layer lacks a norm that the others have, and layers differ in what they attend to."""
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=4, global_attn_every_n_layers=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ModernBertModel(config).eval()
    ids = torch.randint(3, 99, (2, 12))
    for kept in ((1, 2), (0,)):
        keep_layers(model.layers, kept)
        finish_network(model, tmp_path, cut=True, int8=False)
        again = ModernBertModel(config).eval()
        load_network(again, tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(again(ids).last_hidden_state, model(ids).last_hidden_state, atol=0, rtol=0)
    assert layout_of(model).layers["layers"] == (1,)


_SPEECH = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
_PICTURES = {"image_size": 32, "patch_size": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("RobertaConfig", {}), "distilbert": ("DistilBertConfig", {}), "electra": ("ElectraConfig", {}),
    "vit": ("ViTConfig", _PICTURES), "deit": ("DeiTConfig", _PICTURES), "wav2vec2": ("Wav2Vec2Config", _SPEECH),
    "hubert": ("HubertConfig", _SPEECH),
}  # fmt: skip
_SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99,
    "embedding_size": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("int8", [False, True])
def test_checkpoints_are_cut_and_loaded_again(name: str, int8: bool, tmp_path: Path) -> None:
    import transformers

    kind, options = FAMILIES[name]
    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2} if name == "distilbert" else _SMALL
    config = getattr(transformers, kind)(**sizes, **options)
    model = transformers.AutoModel.from_config(config).eval()
    given = {
        "vit": {"pixel_values": torch.randn(2, 3, 32, 32)}, "deit": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "wav2vec2": {"input_values": torch.randn(2, 4000)}, "hubert": {"input_values": torch.randn(2, 4000)},
    }.get(name, {"input_ids": torch.randint(3, 99, (2, 12))})  # fmt: skip
    groups = transformer_groups(model)
    assert {g.name.rsplit(".", 1)[-1] for g in groups} == {"heads", "neurons"} and len(groups) == 4
    prune(model, Importance(model, groups), sizes_for(model, groups, share=0.4))
    finish_network(model, tmp_path, cut=True, int8=int8)
    again = transformers.AutoModel.from_config(config).eval()
    load_network(again, tmp_path)
    with torch.no_grad():
        one, other = (m(**given).last_hidden_state for m in (model, again))
    assert torch.isfinite(one).all()
    torch.testing.assert_close(other, one, atol=0.2 if int8 else 0, rtol=0)
    assert is_packed(tmp_path) == int8


def test_other_families_are_left_alone() -> None:
    from transformers import AutoModel, Qwen2Config, WavLMConfig

    for config in (Qwen2Config(**_SMALL, num_key_value_heads=1), WavLMConfig(**_SMALL, **_SPEECH)):
        assert transformer_groups(AutoModel.from_config(config)) == []
        assert transformer_groups(nn.ModuleDict({"model": AutoModel.from_config(config)})) == []


def test_sizes_are_multiples_and_never_nothing(text_model: str) -> None:
    module, groups, _ = _log_mel(text_model)
    for share in (0.9, 0.5, 0.01):
        sizes = sizes_for(module, groups, share=share)
        for group in groups:
            count = sizes.units[group.name]
            assert 1 <= count <= group.units
            assert group.multiple == 1 or count % group.multiple == 0 or count == group.units
    assert sizes_for(module, groups, share=1.0).units == {g.name: g.units for g in groups}


def test_a_layout_of_another_model_is_refused(text_model: str) -> None:
    module, _, _ = _texts(text_model)
    other, _, _ = _image_cnn(text_model)
    with pytest.raises(UsageError, match="does not fit the model"):
        apply_layout(module, layout_of(other))
    wider = ImageCnnEncoder(ImageCnnConfig(size_px=16, widths=(32, 24, 16), depths=(1, 2, 0)))
    with pytest.raises(UsageError, match="can't become"):
        apply_layout(other, layout_of(wider))
