"""A BPE learnt from texts writes any text and reads it back; equal texts give an equal BPE."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest

from mmbm_core.bpe import MIN_VOCAB, SPECIALS, load_bpe, train_bpe
from mmbm_core.errors import UsageError

TEXTS = ["the red disc lies beside the blue square", "the red star", "der rote Kreis liegt neben dem Quadrat"] * 3
ODD = ["", " two  spaces ", "zażółć", "日本語 🙂", "tab\tnew\nline", "<s>not a token</s><pad>", "\x00\x1f", "\uff21"]


def test_the_special_tokens_have_the_first_ids() -> None:
    tokenizer = load_bpe(train_bpe(TEXTS, vocab_size=300))
    assert [tokenizer.token_to_id(name) for name in SPECIALS] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() == 300


@pytest.mark.parametrize("text", ODD + TEXTS[:3])
def test_any_text_comes_back_and_no_special_token_is_added(text: str) -> None:
    tokenizer = load_bpe(train_bpe(TEXTS, vocab_size=280))
    ids = tokenizer.encode(text).ids
    assert all(id > 3 for id in ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_composed_and_decomposed_letters_are_one_text() -> None:
    tokenizer = load_bpe(train_bpe(TEXTS, vocab_size=280))
    decomposed = unicodedata.normalize("NFD", "café")
    assert tokenizer.encode(decomposed).ids == tokenizer.encode("café").ids


def test_merges_are_the_most_frequent_pairs() -> None:
    """By hand: in "abab abab ..." the pair (a, b) is the most frequent, then (ab, ab), then with the space before."""
    merges = json.loads(train_bpe(["abab " * 5], vocab_size=MIN_VOCAB + 3))["model"]["merges"]
    assert merges == [["a", "b"], ["ab", "ab"], ["Ġ", "abab"]]


def test_a_word_seen_once_is_no_subword() -> None:
    assert not json.loads(train_bpe(["unique"], vocab_size=400))["model"]["merges"]


def test_equal_texts_in_any_order_and_process_give_equal_content() -> None:
    content = train_bpe(TEXTS, vocab_size=320)
    assert train_bpe(iter(TEXTS[::-1]), vocab_size=320) == content
    code = "from tests.mmbm_core.test_bpe import *; print(train_bpe(TEXTS, vocab_size=320), end='')"
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert other.stdout.decode() == content


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="no text to learn a vocabulary from"):
        train_bpe(texts, vocab_size=300)


def test_a_vocabulary_without_room_for_all_bytes_is_an_error() -> None:
    with pytest.raises(UsageError, match="vocab_size is 259; allowed: 260"):
        train_bpe(TEXTS, vocab_size=259)


def test_damaged_content_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.json is damaged"):
        load_bpe("{")
