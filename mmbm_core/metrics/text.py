"""How good generated texts are.

Shapes: `N` rows.
"""

import math
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import NamedTuple

from mmbm_core.errors import UsageError


class Generation(NamedTuple):
    """Scores of generated texts, with what makes them comparable."""

    metrics: dict[str, float]
    bleu_signature: str
    """sacrebleu's: references, tokeniser, smoothing, version; empty where there was no row."""
    chrf2_signature: str


def generation(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, bootstrap: int = 0) -> Generation:
    """Scores of N texts: `bleu`, `chrf2` (0 to 100), `distinct_1`, `distinct_2` (0 to 1).

    BLEU with the 13a tokeniser and chrF2 are sacrebleu's (Post, arXiv 1804.08771), over the whole set. `distinct_n` is
    the number of different n-grams per generated word (Li et al., arXiv 1510.03055), words being cut by 13a; 0 where
    nothing was generated.

    Args:
        hypotheses: N texts; may be empty ones.
        references: one or several for each, not necessarily as many for all.
        bootstrap: resamples, two or more, for `bleu_half_width` and `chrf2_half_width` of the 95 % intervals; sacrebleu
            holds resamples x N x 18 numbers in memory for it.

    Raises:
        UsageError: another number of references than of hypotheses; a row without a reference, or with a bare string.
    """
    _check(hypotheses, references)
    if not hypotheses:
        return Generation({}, "", "")
    from sacrebleu.metrics import BLEU, CHRF

    # sacrebleu wants all first references, all second ones, ...: None where a row has no more
    streams = list(zip_longest(*references))
    metrics: dict[str, float] = {}
    scorers = {"bleu": BLEU(), "chrf2": CHRF()}
    for name, scorer in scorers.items():
        score = scorer.corpus_score(list(hypotheses), streams, n_bootstrap=bootstrap)
        metrics[name] = float(score.score)
        if bootstrap > 1:
            metrics[f"{name}_half_width"] = float(score._ci)
    signatures = [str(scorer.get_signature()) for scorer in scorers.values()]
    return Generation(metrics | _distinct(hypotheses), *signatures)


def _distinct(texts: Sequence[str]) -> dict[str, float]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    rows = [tokenize(text).split() for text in texts]
    num_words = max(1, sum(map(len, rows)))
    words = {word for row in rows for word in row}
    pairs = {pair for row in rows for pair in pairwise(row)}
    return {"distinct_1": len(words) / num_words, "distinct_2": len(pairs) / num_words}


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise UsageError(f"{len(hypotheses)} hypotheses have {len(references)} rows of references; needed: one each")
    for at, row in enumerate(references):
        if isinstance(row, str) or not row:
            raise UsageError(f"the references of row {at} are {row!r}; needed: a list of one or more texts")


def perplexity(total_nll: float, num_tokens: int) -> dict[str, float]:
    """`perplexity`: exp of the mean negative log-likelihood (nats) of the tokens; infinite where that is NaN or huge.

    Only comparable within one tokeniser.
    """
    if not num_tokens:
        return {}
    mean = total_nll / num_tokens
    return {"perplexity": math.exp(mean) if mean < 709 else math.inf}
