"""Names that commands offer before anything heavy is loaded."""

DEFAULT_MODEL = "minilm,efficientnet-lite0,mfcc"
EXACT = "exact"
"""The precision, and the kernels, that equal the reference library."""
