"""Words of a text, as word vectors know them. Apart from the encoder, so that reading text needs no torch."""

import re
import unicodedata

TOKENIZER = "nfc-words"
"""Name of `tokenize` in `word2vec.json`: another rule would need another name."""

_WORD = re.compile(r"\w+")


def tokenize(text: str) -> list[str]:
    """Words as written: runs of letters, digits and underscores of the text in Unicode's NFC, however short or long.

    Training takes them in lower case.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text))
