"""Metrics over a whole evaluation set, as plain dicts of floats.

One rule holds for all: a metric that has no row to measure is left out of its dict, so that every value is a number.
The libraries (torchmetrics, sacrebleu, scipy) load when a function first needs them.
"""

from mmbm_core.metrics.arrays import OUT_OF_SCOPE, UNSEEN, Array
from mmbm_core.metrics.classes import Reliability, classification, confusion, reliability
from mmbm_core.metrics.ranking import modality_gap, ranked_choice, retrieval
from mmbm_core.metrics.scope import choose_threshold, out_of_scope
from mmbm_core.metrics.statistics import Difference, Interval, interval, paired_bootstrap, similarity
from mmbm_core.metrics.text import Generation, generation, perplexity

__all__ = [
    "OUT_OF_SCOPE",
    "UNSEEN",
    "Array",
    "Difference",
    "Generation",
    "Interval",
    "Reliability",
    "choose_threshold",
    "classification",
    "confusion",
    "generation",
    "interval",
    "modality_gap",
    "out_of_scope",
    "paired_bootstrap",
    "perplexity",
    "ranked_choice",
    "reliability",
    "retrieval",
    "similarity",
]
