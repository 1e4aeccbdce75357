"""Files that gensim wrote give gensim's own means; files that lie are refused before they take memory."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbm_core.bundle import load_bundle
from mmbm_core.encoders import build_encoder, modalities_of
from mmbm_core.encoders.base import Item
from mmbm_core.encoders.word2vec import Word2VecConfig, Word2VecEncoder, read_word2vec
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.words import tokenize

gensim_models = pytest.importorskip("gensim.models")

WORDS = ["the", "cat", "mat", "umbrella", "naïve", "cafés", "日本", "Rain", "40", "a"]


@pytest.fixture(scope="module")
def vectors() -> Any:
    """gensim's KeyedVectors of seeded numbers."""
    keyed = gensim_models.KeyedVectors(7)
    random = np.random.default_rng(0)
    keyed.add_vectors(WORDS, random.standard_normal((len(WORDS), 7)).astype(np.float32))
    return keyed


@pytest.fixture(params=["text", "binary"])
def file(request: pytest.FixtureRequest, vectors: Any, tmp_path: Path) -> Path:
    """The same in a file that gensim wrote; its name says nothing."""
    path = tmp_path / "vectors"
    vectors.save_word2vec_format(str(path), binary=request.param == "binary")
    return path


def test_equals_the_mean_of_gensim(file: Path, vectors: Any, texts: list[str], check_encoder: Any) -> None:
    known = ["the cat the mat", *(text for text in texts if text != "yes")]
    words = [[("Rain" if word == "Rain" else word.lower()) for word in tokenize(text)] for text in known]
    means = [vectors.get_mean_vector(found, pre_normalize=False, ignore_missing=True) for found in words]
    encoder = build_encoder(str(file))
    assert modalities_of(str(file)) == ("text",) and encoder.fast_kernels() == ()
    check_encoder(encoder, "text", known, np.stack(means))
    read = read_word2vec(str(file))
    assert read.words == WORDS
    np.testing.assert_array_equal(read.vectors, vectors.vectors)


def test_tokens_are_the_known_words(file: Path, vectors: Any) -> None:
    encoder = build_encoder(str(file))
    items = encoder.prepare("text", ["A cat, unheard of, on THE mat", "umbrella"])
    output = encoder("text", encoder.collate("text", items))  # type: ignore[arg-type]
    assert [item.cost for item in items] == [4, 1]  # type: ignore[union-attr]
    assert output.tokens.shape == (2, 4, 7) and output.mask.tolist() == [[True] * 4, [True] + [False] * 3]
    np.testing.assert_array_equal(output.tokens[0].detach(), vectors[["a", "cat", "the", "mat"]])


def test_what_has_no_vector_is_an_error(file: Path) -> None:
    encoder = build_encoder(str(file))
    items = encoder.prepare("text", ["yes", "...", "\ud800 cat", "cat"])
    assert [str(item) for item in items[:2]] == ["no word of this text is in the vocabulary"] * 2
    assert isinstance(items[2], MediaError) and isinstance(items[3], Item)
    table = load_bundle(str(file)).embed([{"text": "yes"}, {"text": "the cat"}])
    assert table["text_embedding"][0].as_py() is None and table["error"][1].as_py() == ""


def test_long_texts_are_cut_and_told(file: Path) -> None:
    encoder = Word2VecEncoder(read_word2vec(str(file)), config=Word2VecConfig(max_tokens=3))
    items = encoder.prepare("text", ["cat unheard cat cat", "cat cat cat cat"])
    assert [(item.cost, item.cut) for item in items] == [(3, False), (3, True)]  # type: ignore[union-attr]


def test_words_are_told_from_each_other_in_any_writing() -> None:
    assert tokenize("Don't panic: it's 42_000 naïve cafe\u0301s\n") == [
        *("Don", "t", "panic", "it", "s", "42_000", "naïve", "cafés")
    ]


def test_saved_and_loaded_again(file: Path, tmp_path: Path) -> None:
    encoder = build_encoder(str(file))
    encoder.save(tmp_path)
    again = build_encoder(str(tmp_path))
    assert again.space_fingerprint() == encoder.space_fingerprint()
    keyed = gensim_models.KeyedVectors.load_word2vec_format(str(tmp_path / "vectors.bin"), binary=True)
    np.testing.assert_array_equal(keyed["日本"], encoder.embedding.weight.detach()[6])  # type: ignore[union-attr, index]


def test_the_space_knows_words_and_numbers(file: Path) -> None:
    table = read_word2vec(str(file))
    fingerprint = Word2VecEncoder(table).space_fingerprint()
    assert fingerprint != Word2VecEncoder(table._replace(words=[*WORDS[1:], "x"])).space_fingerprint()
    assert fingerprint != Word2VecEncoder(table._replace(vectors=2 * table.vectors)).space_fingerprint()


def test_other_writers_habits(tmp_path: Path, vectors: Any) -> None:
    """The C tool ends each binary entry with a line end, fastText each line with a space; a word may come twice."""
    numbers = np.arange(6, dtype="<f4").reshape(3, 2)
    entries = zip((b"one", b"two", b"one"), numbers, strict=True)
    (tmp_path / "c").write_bytes(b"3 2\n" + b"".join(w + b" " + n.tobytes() + b"\n" for w, n in entries))
    (tmp_path / "fasttext").write_bytes(b"3 2\r\none 0 1 \ntwo 2 3 \none 4 5 ")
    for name in ("c", "fasttext"):
        table = read_word2vec(str(tmp_path / name))
        assert table.words == ["one", "two", "one"]
        np.testing.assert_array_equal(table.vectors, numbers)
        output = Word2VecEncoder(table).prepare("text", ["one"])[0]
        assert output.data == [0]  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"", b"{}", b"PK\x03\x04", b"the 0.1 0.2\ncat 0.3 0.4\n", b"2,3\n", b"9" * 100])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    with pytest.raises(UsageError, match=r"x\.bin is no file in word2vec format: .*COUNT DIM"):
        build_encoder(str(tmp_path / "x.bin"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"3 2\na 1 2\nb 3 4\n", "claims 3 vectors of 2 numbers, 17 bytes at least, and 12 follow"),
        (b"900000000000 300000000\na 1 2\n", "claims 900000000000 vectors"),
        (b"2 0\n\n", "claims 2 vectors of 0"),
        (b"0 2\n", "claims 0 vectors"),
        (b"2 2\na 1 2\nb 3 x\n", "line 3 is not one word and 2 numbers"),
        (b"2 2\na 1 2\nb b 3 4\n", "line 3 is not"),
        (b"2 2\na 1 2\nb 3 inf\n", "not finite"),
        (b"2 2\na 1 2\nb 3 4\nc 5 6\n", "goes on after the 2 vectors"),
        (b"2 1\n\xff 1\nb 3\n", "decode"),
        (b"2 1\na \0\0\0\0b\0\0\0\0\0", "entry 2 of 2 is cut off"),
        (b"1 2\na \0\0\0\0\0\0\0", "claims 1 vectors of 2 numbers, 10 bytes at least"),
        (b"1 1\na \0\0\0\0b \0\0\0\0", "goes on after"),
        (b"1 1\na \0\0\xc0\x7f", "not finite"),
        (b"2 1\naa 1.5 2\nb 3 4\n", "entry 2 is neither a line with 1 numbers"),
    ],
)
def test_corrupt_files_are_refused(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "x.vec").write_bytes(data)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=rf"x\.vec is corrupt: .*{what}"):
        build_encoder(str(tmp_path / "x.vec"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000


def test_every_cut_of_a_file_is_refused(file: Path) -> None:
    data = file.read_bytes()
    last_that_is_whole = len(data) - data.endswith(b"\n")
    for length in range(last_that_is_whole - 1, 0, -7):
        file.write_bytes(data[:length])
        try:
            words = read_word2vec(str(file)).words
        except UsageError:
            continue
        assert words == WORDS and length > last_that_is_whole - 10  # the last number lost some digits


@pytest.mark.parametrize(
    ("description", "what"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"tokenizer": "other"}), "'other'.*'nfc-words'"),
        (json.dumps({"tokenizer": "nfc-words"}), "lacks vectors.bin"),
    ],
)
def test_folders_that_are_not_whole(tmp_path: Path, description: str, what: str) -> None:
    (tmp_path / "word2vec.json").write_text(description)
    with pytest.raises(UsageError, match=what):
        build_encoder(str(tmp_path))


def test_no_options(file: Path) -> None:
    with pytest.raises(UsageError, match="pooling"):
        build_encoder(str(file), pooling="cls")
