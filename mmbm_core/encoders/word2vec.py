"""Word vectors of a file in word2vec format, text or binary: a text is the mean of its words' vectors.

`mmbm word2vec` writes such files, and so do gensim, the original C tool and fastText (.vec). They are read here with
NumPy alone: nothing is unpickled, and no header makes this reserve more memory than the file's own size accounts for.

Shapes: `B` batch, `T` tokens (words), `D` width, `V` words of the vocabulary.
"""

import hashlib
import json
import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from mmbm_core.encoders.base import Encoder, EncoderOutput, Item
from mmbm_core.encoders.checkpoint import WORD2VEC_FILE
from mmbm_core.encoders.text import pool
from mmbm_core.encoders.tokens import TokenBatch, TokenRules, collate_tokens
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits, text_error
from mmbm_core.sample import Modality
from mmbm_core.words import TOKENIZER, tokenize

VECTORS_FILE = "vectors.bin"

_HEADER = re.compile(rb"(\d{1,12}) (\d{1,9})[ \t\r]*\n")
_HEADER_BYTES = 64
_MAX_WORD_BYTES = 4096
_MAX_NUMBER_BYTES = 64


class Word2VecConfig(BaseModel):
    """What is read of a text."""

    model_config = ConfigDict(frozen=True)

    max_tokens: int = 65_536
    """Known words beyond these are cut: a text of the largest size allowed would take a gigabyte else."""


class WordVectors(NamedTuple):
    """A file in word2vec format."""

    words: list[str]
    """V words as the file has them."""
    vectors: np.ndarray
    """(V, D) float32."""


class Word2VecEncoder(Encoder):
    """Mean of word vectors (B, D); tokens (B, T, D) are the words that the vocabulary has, in order.

    A word is looked up as written, then in lower case, so that a vocabulary with capitals serves too; of a word that
    a file has twice the first counts (as in gensim).
    """

    modalities = ("text",)

    def __init__(self, table: WordVectors, *, config: Word2VecConfig | None = None) -> None:
        super().__init__()
        self.config = config or Word2VecConfig()
        count, width = table.vectors.shape
        self.embedding = nn.Embedding(count, width, _weight=torch.from_numpy(table.vectors))
        self._ids = {word: i for i, word in reversed(list(enumerate(table.words)))}
        self._words = table.words
        self._words_sha256 = hashlib.sha256("\n".join(table.words).encode()).hexdigest()

    @property
    def width(self) -> int:
        return self.embedding.embedding_dim

    def budget(self, modality: Modality) -> int:
        return 16_384 if self.device.type == "cpu" else 262_144

    def fast_kernels(self) -> tuple[str, ...]:
        return ()

    def preprocessing(self) -> dict[str, Any]:
        return {"kind": "word2vec", "tokenizer": TOKENIZER, "words": self._words_sha256, **self.config.model_dump()}

    def prepare(
        self, modality: Modality, values: Sequence[str], *, limits: Limits = DEFAULT_LIMITS
    ) -> list[Item | MediaError]:
        """Ids of each text's known words; cost is their number."""
        return [self._prepare(value, limits) for value in values]

    def _prepare(self, value: str, limits: Limits) -> Item | MediaError:
        if error := text_error(value, limits=limits):
            return error
        found = [self._ids.get(word, self._ids.get(word.lower())) for word in tokenize(value)]
        known = [i for i in found if i is not None]
        if not known:
            return MediaError("no word of this text is in the vocabulary")
        kept = known[: self.config.max_tokens]
        return Item(kept, cost=len(kept), cut=len(kept) < len(known))

    def collate(self, modality: Modality, items: Sequence[Item]) -> TokenBatch:
        return collate_tokens(items, pad_id=0, device=self.device)

    def token_rules(self) -> TokenRules:
        """How ids of texts are put together: nothing stands around them."""
        return TokenRules(start=0, end=0, most=self.config.max_tokens)

    def save(self, folder: Path) -> None:
        write_folder(folder, WordVectors(self._words, self.embedding.weight.detach().cpu().numpy()))

    def forward(self, modality: Modality, batch: TokenBatch) -> EncoderOutput:
        tokens = self.embedding(batch.input_ids)
        return EncoderOutput(tokens, batch.mask.bool(), pool(tokens, batch.mask, "mean"))


def build_word2vec(path: str) -> Word2VecEncoder:
    """Load a file in word2vec format, or the folder that `mmbm word2vec` wrote.

    Raises:
        UsageError: the folder has no vectors or was made with another tokenizer, or the file is corrupt.
    """
    if Path(path).is_file():
        return Word2VecEncoder(read_word2vec(path))
    described = Path(path) / WORD2VEC_FILE
    try:
        tokenizer = json.loads(described.read_bytes())["tokenizer"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{described} is damaged: train again, or give the file with the vectors itself") from None
    if tokenizer != TOKENIZER:
        raise UsageError(f"{described} names the tokenizer {tokenizer!r}; this version of mmbm has {TOKENIZER!r} only")
    vectors = Path(path) / VECTORS_FILE
    if not vectors.is_file():
        raise UsageError(f"model folder {path} lacks {VECTORS_FILE}")
    return Word2VecEncoder(read_word2vec(str(vectors)))


def write_folder(folder: Path, table: WordVectors, *, facts: Mapping[str, Any] | None = None) -> None:
    """Write what `build_word2vec` reads: the vectors in binary word2vec format, and what tokenizer they go with.

    Args:
        facts: more for `word2vec.json`.
    """
    with (folder / VECTORS_FILE).open("wb") as file:
        file.write(b"%d %d\n" % table.vectors.shape)
        for word, vector in zip(table.words, table.vectors.astype("<f4"), strict=True):
            file.write(word.encode() + b" " + vector.tobytes())
    (folder / WORD2VEC_FILE).write_text(json.dumps({"tokenizer": TOKENIZER, **(facts or {})}, indent=2))


def read_word2vec(path: str) -> WordVectors:
    """Read a file in word2vec format: a line `COUNT DIM`, then COUNT words with DIM numbers each.

    Whether the numbers are text or 4 bytes each shows in the first of them.

    Raises:
        UsageError: the file is in another format, corrupt, or smaller than its header claims.
    """
    with open(path, "rb") as file:
        header = _HEADER.fullmatch(file.readline(_HEADER_BYTES))
        if not header:
            raise UsageError(
                f"{path} is no file in word2vec format: its first line must be `COUNT DIM`, such as `400000 300`"
            )
        count, width = map(int, header.groups())
        try:
            table = _read_table(file, count, width)
            if not np.isfinite(table.vectors).all():
                raise ValueError("it holds numbers that are not finite")
        except ValueError as error:  # UnicodeDecodeError among them
            raise UsageError(f"{path} is corrupt: {error}") from error
    return table


def _read_table(file: BinaryIO, count: int, width: int) -> WordVectors:
    start = file.tell()
    is_text = _parse_line(file.readline(_line_bytes(width)), width) is not None
    left = file.seek(0, 2) - start
    file.seek(start)
    least = count * (2 + (2 if is_text else 4) * width) - is_text  # the last line may lack its end
    if not count or not width or least > left:
        raise ValueError(
            f"its header claims {count} vectors of {width} numbers, {least} bytes at least, and {left} follow"
        )
    vectors = np.empty((count, width), dtype=np.float32)
    words = (_read_text if is_text else _read_binary)(file, vectors)
    if file.read(_HEADER_BYTES).strip():
        raise ValueError(f"it goes on after the {count} vectors that its header claims")
    return WordVectors([word.decode() for word in words], vectors)


def _read_text(file: BinaryIO, vectors: np.ndarray) -> list[bytes]:
    """Fill `vectors` (V, D) from lines `WORD NUMBER...`; returns the words."""
    words: list[bytes] = []
    width = vectors.shape[1]
    for row in range(len(vectors)):
        entry = _parse_line(file.readline(_line_bytes(width)), width)
        if entry is None:
            raise ValueError(f"line {row + 2} is not one word and {width} numbers")
        words.append(entry[0])
        vectors[row] = entry[1]
    return words


def _read_binary(file: BinaryIO, vectors: np.ndarray) -> list[bytes]:
    """Fill `vectors` (V, D) from entries `WORD NUMBERS`, with or without a line end after each; returns the words."""
    words: list[bytes] = []
    width, at = vectors.shape[1], file.tell()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for row in range(len(vectors)):
            space = data.find(b" ", at, at + _MAX_WORD_BYTES)
            end = space + 1 + 4 * width
            if space < 0 or end > len(data):
                raise ValueError(f"entry {row + 1} of {len(vectors)} is cut off, or is not a word and {width} numbers")
            word = data[at:space].lstrip(b"\n")
            if b"\n" in word:
                raise ValueError(f"entry {row + 1} is neither a line with {width} numbers nor a binary one")
            words.append(word)
            vectors[row] = np.frombuffer(data, "<f4", width, space + 1)
            at = end
    file.seek(at)
    return words


def _parse_line(line: bytes, width: int) -> tuple[bytes, list[float]] | None:
    word, *numbers = line.rstrip().split(b" ")
    try:
        return (word, list(map(float, numbers))) if len(numbers) == width else None
    except ValueError:
        return None


def _line_bytes(width: int) -> int:
    return _MAX_WORD_BYTES + _MAX_NUMBER_BYTES * width
