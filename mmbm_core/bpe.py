"""Byte-level BPE: subwords learnt from texts, so that a model written from scratch can read and write any text."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mmbm_core.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, START, END, UNKNOWN = SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
"""Their ids are 0 to 3."""

MIN_VOCAB = len(SPECIALS) + 256
"""The special tokens and a token for each byte."""


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> str:
    """Learn subwords (Sennrich et al., arXiv 1508.07909) over UTF-8 bytes of the texts in Unicode's NFC.

    Equal texts give equal content, whatever their order. No special token is added to what is encoded.

    Args:
        texts: read once; those that are empty count as none.
        vocab_size: tokens at most, the special ones among them; few texts give fewer.

    Returns:
        The content of a tokenizer.json.

    Raises:
        UsageError: no text, or a vocabulary that does not even hold all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocab_size < MIN_VOCAB:
        raise UsageError(f"vocab_size is {vocab_size}; allowed: {MIN_VOCAB} (all bytes and special tokens) or more")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # what occurs once is no subword
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found = 0

    def counted() -> Iterator[str]:
        nonlocal found
        for text in texts:
            if text.strip():
                found += 1
                yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not found:
        raise UsageError("no text to learn a vocabulary from: name a column whose training rows have some")
    return tokenizer.to_str()


def load_bpe(content: str) -> "Tokenizer":
    """The tokenizer that `train_bpe` made. A special token that is written out in a text is text like any other.

    Raises:
        UsageError: not the content of a tokenizer.json.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"tokenizer.json is damaged ({error}): copy it again from where it was made") from error
    tokenizer.encode_special_tokens = True
    return tokenizer
