"""Word vectors on a real Ray: those that plain gensim learns from the same sentences, and whole or absent."""

import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deploy.cli.settings import parse_settings
from mmbm_core.encoders import build_encoder
from mmbm_core.errors import RunError, UsageError
from mmbm_core.words import tokenize
from pipelines import sentences as sentences_module
from pipelines import word2vec as word2vec_module
from pipelines.sample import read_sample
from pipelines.sentences import sentence_blocks
from pipelines.word2vec import Word2VecRequest, Word2VecSettings, word2vec
from workers.readers.discover import discover

gensim_models = pytest.importorskip("gensim.models")

pytestmark = pytest.mark.usefixtures("ray_cluster")

SETTINGS = {"vector_size": 16, "min_count": 3, "epochs": 2, "workers": 1, "seed": 7}


def make_texts(count: int, *, seed: int = 0) -> list[str]:
    """Sentences of some words that follow Zipf's law."""
    dice = random.Random(seed)
    words = [f"Wort{n}ß" for n in range(200)]
    weights = [1 / (n + 1) for n in range(len(words))]
    return [" ".join(dice.choices(words, weights, k=dice.randint(1, 12))) + "." for _ in range(count)]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`train(INPUT..., text_columns=[...], key=value)` into `tmp_path / "model"`."""

    def run(*inputs: Path, output: str = "", text_columns: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
        return word2vec(
            Word2VecRequest(
                inputs=[str(path) for path in inputs],
                output=output or str(tmp_path / "model"),
                text_columns=list(text_columns),
                settings=Word2VecSettings(**(SETTINGS | settings)),
            )
        )

    return run


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units of an input of kilobytes, and several blocks of each."""
    monkeypatch.setattr(sentences_module, "_MIN_UNIT_BYTES", 1 << 10)


def read_sentences(*inputs: Path, columns: list[str]) -> Iterator[list[str]]:
    found = discover([str(path) for path in inputs])
    for block in sentence_blocks(found, read_sample(found), columns, stall_s=60):
        assert not block.rows_bad
        yield from (line.split(" ") for line in block.lines.decode().splitlines())


@pytest.mark.usefixtures("small_units")
def test_equals_plain_gensim(train: Any, write: Any, tmp_path: Path) -> None:
    texts = make_texts(1500)
    data = write("a.jsonl", [{"text": text} for text in texts])
    plain = gensim_models.Word2Vec(
        [[word.lower() for word in tokenize(text)] for text in texts],
        sg=1, negative=5, window=5, sample=1e-3, alpha=0.025, min_alpha=0.0001, **SETTINGS,
    ).wv  # fmt: skip
    result = train(data)
    model = tmp_path / "model"
    keyed = gensim_models.KeyedVectors.load_word2vec_format(str(model / "vectors.bin"), binary=True)
    assert keyed.index_to_key == plain.index_to_key and len(keyed) > 100
    np.testing.assert_array_equal(keyed.vectors, plain.vectors)

    num_words = sum(len(tokenize(text)) for text in texts)
    expected = {"rows_in": 1500, "rows_bad": 0, "sentences": 1500, "words": num_words, "vocabulary": len(plain)}
    assert result.items() >= expected.items() and result["output"] == str(model)
    told = json.loads((model / "word2vec.json").read_text())
    assert told["figures"].items() >= expected.items() and told["tokenizer"] == "nfc-words"
    assert told["settings"]["seed"] == 7 and told["text_columns"] == ["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "model"]

    (item,) = build_encoder(str(model)).prepare("text", ["WORT0ß wort1ß nie"])
    assert [keyed.index_to_key[i] for i in item.data] == ["wort0ß", "wort1ß"]  # type: ignore[union-attr]


@pytest.mark.usefixtures("small_units")
def test_sentences_come_in_order_from_any_columns(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences_module, "_BLOCK_BYTES", 4000)
    one, two = make_texts(3000), make_texts(3000, seed=1)
    rows = [{"de": a, "turns": [b, None, a], "n": n} for n, (a, b) in enumerate(zip(one, two, strict=True))]
    rows[0]["de"] = one[0] * 100_000  # the unit that begins first ends last
    rows[5] = {"de": None, "turns": [], "n": 5}
    wanted = [[w.lower() for w in tokenize(t)] for r in rows for t in [r["de"], *r["turns"]] if t]
    wanted[:1] = [wanted[0][n : n + 10_000] for n in range(0, len(wanted[0]), 10_000)]
    first = pa.Table.from_pylist(rows[:2990])
    schema, folder = first.schema, write("a.parquet", first).parent
    for start in range(2990, 3000):
        write(f"b{start}.parquet", pa.Table.from_pylist(rows[start : start + 1], schema))
    assert list(read_sentences(folder, columns=["de", "turns"])) == wanted


def test_all_text_columns_unless_named(train: Any, write: Any, tmp_path: Path) -> None:
    pairs = zip(make_texts(60), make_texts(60, seed=1), strict=True)
    data = write("a.jsonl", [{"left": a, "right": b, "label": "x"} for a, b in pairs])
    assert train(data)["sentences"] == 120
    assert train(data, output=f"{tmp_path}/named", text_columns=("label",))["words"] == 60


def test_long_texts_are_several_sentences(write: Any) -> None:
    words = [f"w{n}" for n in range(25_000)]
    data = write("a.jsonl", [{"text": " ".join(words)}, {"text": "w0"}])
    found = list(read_sentences(data, columns=["text"]))
    assert [len(sentence) for sentence in found] == [10_000, 10_000, 5_000, 1]
    assert [word for sentence in found[:3] for word in sentence] == words


def test_bad_rows_are_left_out_and_counted(train: Any, write: Any, capfd: Any) -> None:
    good = [json.dumps({"text": text}) for text in make_texts(80)]
    data = write("a.jsonl", [])
    data.write_text("\n".join([*good[:40], '{"text": "torn', *good[40:], '{"text": "\\ud800 wort1ß"}']))
    result = train(data)
    assert (result["rows_in"], result["rows_bad"], result["sentences"]) == (82, 2, 80)
    assert "a.jsonl#" in capfd.readouterr().err


def test_a_url_gets_the_model_whole(train: Any, write: Any) -> None:
    import fsspec

    data = write("a.jsonl", [{"text": text} for text in make_texts(60)])
    assert train(data, output="memory://models/one")["output"] == "memory:///models/one"
    files = fsspec.filesystem("memory").find("/models/one")
    assert [Path(file).name for file in files] == ["vectors.bin", "word2vec.json"]
    with pytest.raises(UsageError, match="not empty"):
        train(data, output="memory://models/one")


def test_what_can_not_be_learnt_from_is_refused(train: Any, write: Any, tmp_path: Path) -> None:
    numbers = write("numbers.jsonl", [{"n": 1}, {"n": 2}])
    empty = write("empty.jsonl", [])
    blank = write("blank.jsonl", [{"text": " ... "}, {"text": None}])
    few = write("few.jsonl", [{"text": "a b"}, {"text": "b c"}])
    for data, given, message in (
        (numbers, {}, "no text among the columns n; name some with --text-column"),
        (empty, {}, r"no text among the columns \(none\)"),
        (numbers, {"text_columns": ("m",)}, "no column 'm'; the columns are n"),
        (blank, {"text_columns": ("text",)}, "holds no words"),
        (few, {"min_count": 3}, "no word occurs 3 times among the 4 of the input"),
    ):
        with pytest.raises(UsageError, match=message):
            train(data, **given)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="model is not empty; give a folder of its own"):
        train(few, min_count=1)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("stage", ["read", "wait", "train", "publish"])
def test_a_run_that_fails_leaves_nothing(
    stage: str, train: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write("a.jsonl", [{"text": text} for text in make_texts(60)])

    def vanish(inputs: Any, **options: Any) -> Any:
        """Listed, and gone when a task opens it."""
        sample = read_sample(inputs, **options)
        inputs.sources = partial(list, list(inputs.sources()))
        data.unlink()
        return sample

    def no_disk(*_: object) -> None:
        raise OSError("no disk")

    module, name, value, message = {
        "read": (word2vec_module, "read_sample", vanish, r"can't read \S*a.jsonl: .*run the command again$"),
        "wait": (sentences_module, "_TICK_S", 1e-4, "nothing was read for 0.0001 s. The cluster has 2 CPU"),
        "train": (word2vec_module.Corpus, "_tell", no_disk, "no disk"),
        "publish": (word2vec_module.os, "replace", no_disk, "no disk"),
    }[stage]
    monkeypatch.setattr(word2vec_module, "_TELL_EVERY", 10)
    monkeypatch.setattr(module, name, value)
    with pytest.raises(RunError if stage in ("read", "wait") else OSError, match=message):
        train(data, stall_s=1e-4 if stage == "wait" else 60)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_without_gensim_the_way_out_is_told(train: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(UsageError, match=r"pip install 'mmbm\[train\]'"):
        train(write("a.jsonl", [{"text": "a b"}]))


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(UsageError, match=r"(?s)vectors: unknown.*window='0'.*epochs='x'"):
        parse_settings(Word2VecSettings, ["window=0", "vectors=3", "epochs=x"])
