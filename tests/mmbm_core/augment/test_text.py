"""Each change of a text is what its name says, punctuation stays, and a seed repeats."""

from collections import Counter
from difflib import SequenceMatcher

import pytest
from pydantic import ValidationError

from mmbm_core.augment.text import TextAugment, augment_text

TEXT = 'A well-known dog (brown, "fast") doesn\'t stop: it runs, and runs, until the sun sets…'
WORDS = "A well-known dog brown fast doesn't stop it runs and runs until the sun sets".split()
FULL = TextAugment(drop=0.2, swap=0.2, typos=0.2)


def _words(text: str) -> list[str]:
    return [word for word in (piece.strip('(),":…') for piece in text.split()) if word]


def test_nothing_is_on_by_default() -> None:
    for text in (TEXT, "", "  ", "\t a \n", "..."):
        assert augment_text(text, TextAugment(), 3) == text


def test_dropped_words_leave_the_others_in_order() -> None:
    lost = 0
    for seed in range(400):
        changed = augment_text(TEXT, TextAugment(drop=0.25), seed)
        words = _words(changed)
        remaining = iter(WORDS)
        assert all(word in remaining for word in words)  # a subsequence
        lost += len(WORDS) - len(words)
        assert Counter(c for c in changed if c in '(),":…') == Counter(c for c in TEXT if c in '(),":…')
        assert "  " not in changed and not changed.startswith(" ") and " ," not in changed
    assert lost / (400 * len(WORDS)) == pytest.approx(0.25, abs=0.02)


def test_one_word_always_stays() -> None:
    left = {augment_text("red green blue", TextAugment(drop=0.99), seed) for seed in range(300)}
    assert {"red", "green", "blue"} <= left and "" not in left


def test_swapped_words_are_neighbours_and_punctuation_stays() -> None:
    moved = 0
    for seed in range(400):
        changed = augment_text("a, b. c d (e)", TextAugment(swap=0.3), seed)
        words = _words(changed.replace(".", ""))
        assert sorted(words) == list("abcde")
        assert [c for c in changed if not c.isalpha()] == [c for c in "a, b. c d (e)" if not c.isalpha()]
        away = [abs(words.index(word) - i) for i, word in enumerate("abcde")]
        assert max(away) <= 1
        moved += sum(away) // 2
    assert moved / 400 == pytest.approx(_expected_swaps(5, 0.3), rel=0.1)


def _expected_swaps(words: int, share: float) -> float:
    """After a swap, both words are passed over."""
    if words < 2:
        return 0.0
    return share * (1 + _expected_swaps(words - 2, share)) + (1 - share) * _expected_swaps(words - 1, share)


def test_typos_are_one_slip_a_word() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(600):
        changed = augment_text("Keyboard", TextAugment(typos=0.99), seed)
        if changed == "Keyboard":
            continue
        if sorted(changed) == sorted("Keyboard"):
            places = [i for i in range(8) if changed[i] != "Keyboard"[i]]
            assert len(places) == 2 and places[1] == places[0] + 1
            kinds["transposed"] += 1
        elif len(changed) == 8:
            (place,) = [i for i in range(8) if changed[i] != "Keyboard"[i]]
            pair = "Keyboard"[place] + changed[place]
            assert any(each in "qwertyuiop asdfghjkl zxcvbnm" for each in (pair.lower(), pair.lower()[::-1]))
            assert pair[0].isupper() == pair[1].isupper()
            kinds["beside"] += 1
        else:
            assert SequenceMatcher(None, changed, "Keyboard").ratio() > 0.9
            kinds["doubled" if len(changed) == 9 else "left out"] += 1
    assert set(kinds) == {"transposed", "beside", "doubled", "left out"} and min(kinds.values()) > 110


def test_a_share_of_the_words_is_mistyped() -> None:
    text = " ".join(f"word{i}x" for i in range(50))
    changed = [augment_text(text, TextAugment(typos=0.1), seed).split() for seed in range(100)]
    wrong = sum(word != f"word{i}x" for words in changed for i, word in enumerate(words))
    assert wrong / 5000 == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "text", [TEXT, "Ein Mädchen läuft über die Straße.", "नमस्ते दुनिया", "犬が 走る。", "a", "", "🙂 ok"]
)
def test_a_seed_repeats_and_another_differs(text: str) -> None:
    found = [augment_text(text, FULL, seed) for seed in range(50)]
    assert found == [augment_text(text, FULL, seed) for seed in range(50)]
    assert len(set(found)) > 1 or len(text) <= 1
    assert all(bool(each.strip()) == bool(text.strip()) for each in found)


@pytest.mark.parametrize("wrong", [{"drop": 1.0}, {"swap": -0.1}, {"synonyms": 0.1}])
def test_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TextAugment(**wrong)
