"""Text scores equal the formulas of BLEU, chrF and distinct-n, written as plain loops."""

import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from mmbm_core.errors import UsageError
from mmbm_core.metrics import generation, perplexity

HYPOTHESES = [
    "a red ball lies on the green grass",
    "the dog runs over the old wooden bridge to the house",
    "two men play music in the park at night",
    "",
    "the the the the cat",
]
REFERENCES = [
    ["a red ball is lying on the green grass", "the red ball lies on green grass today"],
    ["a dog runs over the old wooden bridge to its house"],
    ["two men play some music in the park", "two men make music in the park at night", "men play at night"],
    ["nothing was said"],
    ["the cat sat on the mat"],
]


def _ngrams(items: list[str] | str, n: int) -> Counter[str]:
    return Counter(str(items[i : i + n]) for i in range(len(items) - n + 1))


def _bleu() -> float:
    """Papineni et al. (2002): clipped precisions of orders 1 to 4, closest reference length; no smoothing needed."""
    matches, totals, length, closest = [0] * 4, [0] * 4, 0, 0
    for hypothesis, references in zip(HYPOTHESES, REFERENCES, strict=True):
        words = hypothesis.split()
        length += len(words)
        closest += min((abs(len(r.split()) - len(words)), len(r.split())) for r in references)[1]
        for n in range(1, 5):
            allowed: Counter[str] = Counter()
            for reference in references:
                allowed |= _ngrams(reference.split(), n)
            matches[n - 1] += (_ngrams(words, n) & allowed).total()
            totals[n - 1] += _ngrams(words, n).total()
    precision = math.exp(sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4)
    return 100 * min(1.0, math.exp(1 - closest / length)) * precision


def _chrf2(hypotheses: list[str], references: list[str]) -> float:
    """Popovic (2015): F2 of the mean precision and recall of character 1- to 6-grams, without spaces."""
    precisions, recalls = [], []
    for n in range(1, 7):
        joined = [[text.replace(" ", "") for text in texts] for texts in (hypotheses, references)]
        pairs = [(_ngrams(h, n), _ngrams(r, n)) for h, r in zip(*joined, strict=True)]
        both = sum((h & r).total() for h, r in pairs)
        precisions.append(both / sum(h.total() for h, _ in pairs))
        recalls.append(both / sum(r.total() for _, r in pairs))
    p, r = np.mean(precisions), np.mean(recalls)
    return float(100 * 5 * p * r / (4 * p + r))


def test_equals_the_papers() -> None:
    metrics = generation(HYPOTHESES, REFERENCES).metrics
    assert metrics["bleu"] == pytest.approx(_bleu())
    words = [text.split() for text in HYPOTHESES]
    pairs = {(row[i], row[i + 1]) for row in words for i in range(len(row) - 1)}
    assert metrics["distinct_1"] == pytest.approx(len({w for row in words for w in row}) / sum(map(len, words)))
    assert metrics["distinct_2"] == pytest.approx(len(pairs) / sum(map(len, words)))
    alone = HYPOTHESES[:3], [row[0] for row in REFERENCES[:3]]
    single = generation(alone[0], [[reference] for reference in alone[1]])
    assert single.metrics["chrf2"] == pytest.approx(_chrf2(*alone))
    assert single.metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(alone[0], [alone[1]]).score)


def test_signatures_say_how() -> None:
    found = generation(HYPOTHESES, REFERENCES)
    version = f"version:{sacrebleu.__version__}"
    assert found.bleu_signature == f"nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert found.chrf2_signature == f"nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"
    assert generation(["a"], [["a", "b"]]).bleu_signature.startswith("nrefs:2|")


def test_words_are_cut_from_punctuation() -> None:
    metrics = generation(["Go home, now!", "go home now"], [["x"], ["x"]]).metrics
    assert metrics["distinct_1"] == pytest.approx(6 / 8)  # Go home , now ! go
    assert metrics["distinct_2"] == pytest.approx(6 / 8)


def test_a_bootstrap_gives_intervals_and_leaves_the_scores() -> None:
    hypotheses, references = HYPOTHESES[:3] * 10, REFERENCES[:3] * 10
    plain, found = generation(hypotheses, references), generation(hypotheses, references, bootstrap=200)
    assert plain.metrics == {name: found.metrics[name] for name in plain.metrics}
    assert "|bs:200|seed:12345|" in found.bleu_signature
    own = _resampled_half_width(hypotheses, references)
    assert found.metrics["bleu_half_width"] == pytest.approx(own, rel=0.3)
    assert 0 < found.metrics["chrf2_half_width"] < found.metrics["chrf2"]


def _resampled_half_width(hypotheses: list[str], references: list[list[str]]) -> float:
    random = np.random.default_rng(1)
    scores = []
    for _ in range(200):
        rows = random.integers(len(hypotheses), size=len(hypotheses))
        scores.append(generation([hypotheses[i] for i in rows], [references[i] for i in rows]).metrics["bleu"])
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(high - low) / 2


def test_nothing_said_scores_0() -> None:
    assert generation(["", ""], [["a"], ["b", "c"]]).metrics == dict.fromkeys(
        ("bleu", "chrf2", "distinct_1", "distinct_2"), 0.0
    )
    assert generation([], []) == ({}, "", "")


def test_bad_references_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2 hypotheses have 1 rows"):
        generation(["a", "b"], [["a"]])
    with pytest.raises(UsageError, match=r"row 1 are 'b'; needed: a list"):
        generation(["a", "b"], [["a"], "b"])
    with pytest.raises(UsageError, match=r"row 0 are \[\]; needed"):
        generation(["a"], [[]])


def test_perplexity() -> None:
    assert perplexity(8 * math.log(50), 8)["perplexity"] == pytest.approx(50)
    assert perplexity(1e6, 10) == perplexity(math.nan, 10) == {"perplexity": math.inf}
    assert perplexity(0.0, 0) == {}
