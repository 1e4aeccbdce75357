"""Names that commands offer and read before anything heavy is loaded."""

import re

DEFAULT_MODEL = "minilm,efficientnet-lite0,mfcc"
EXACT = "exact"
"""The precision, and the kernels, that equal the reference library."""
BUNDLE_FILE = "bundle.json"
"""What makes a folder a trained bundle."""
_PART = re.compile(r"(.+)#(text|image|audio)", re.DOTALL)


def model_names(model: str) -> list[str]:
    """The names that `--model` joins by commas."""
    return [name.strip() for name in model.split(",") if name.strip()]


def split_part(name: str) -> tuple[str, str]:
    """`runs/a` and `image` of `runs/a#image`, which is a trained bundle's part for images; any other name and ""."""
    found = _PART.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")
