"""`mmbm word2vec`: the text of a dataset in, word vectors out, by skip-gram with negative sampling.

Ray Data reads and tokenizes the input once; this process lays the sentences down in a file without a name, and gensim
trains on that file, pass after pass. So nothing ever holds the text, and a pass costs no more than reading lines and
cutting them at their spaces. What grows in memory is the vocabulary.

The objective is that of Mikolov et al., "Distributed Representations of Words and Phrases and their
Compositionality" (1310.4546), equation 4: two vectors a word, and no softmax over the vocabulary. The same seed gives
the same vectors with `workers=1`, however the input is cut and whatever PYTHONHASHSEED is; several training threads
write into each other's vectors in an order that is never the same.

Shapes: `V` words of the vocabulary, `D` width.
"""

import importlib.metadata
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from mmbm_core.errors import UsageError
from pipelines.common import check_apart
from pipelines.progress import Progress, say
from pipelines.sample import SourceSample, read_sample
from pipelines.sentences import sentence_blocks
from workers.columns import choose_encodings
from workers.readers.discover import InputSet, discover
from workers.storage import Storage, open_location

_MOST_WORDS = 20_000_000
"""Different words, about 2 GB of them: beyond these gensim forgets the rarest while it counts."""
_TELL_EVERY = 4096
"""Sentences between two looks at the clock."""


class Word2VecSettings(BaseModel):
    """Settings of `mmbm word2vec` beside its arguments, by gensim's names; `--set key=value` sets one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector_size: int = Field(100, ge=1, description="D: length of a word's vector")
    window: int = Field(5, ge=1, description="words to each side that a word is to foretell, at most")
    negative: int = Field(5, ge=1, description="words drawn as noise for each of them")
    min_count: int = Field(5, ge=1, description="rarer words are left out")
    epochs: int = Field(5, ge=1)
    sample: float = Field(1e-3, ge=0, description="words that are a larger share of the text are thinned out; 0: none")
    alpha: float = Field(0.025, gt=0, description="learning rate at the start")
    min_alpha: float = Field(0.0001, gt=0, description="learning rate at the end")
    seed: int = Field(1, ge=0, lt=1 << 32)
    workers: int | None = Field(None, ge=1, description="training threads; default: one a CPU; 1 repeats exactly")
    column_types: str = Field("", description="types the sample got wrong, such as score:double,zip:string")
    stall_s: float = Field(900.0, gt=0, description="when nothing is read for so long the run ends")


class Word2VecRequest(BaseModel):
    """What the command line asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: list[str] = Field(min_length=1)
    output: str
    text_columns: list[str] = Field(default_factory=list)
    format: str | None = None
    settings: Word2VecSettings = Word2VecSettings()


def word2vec(request: Word2VecRequest) -> dict[str, Any]:
    """Learn word vectors; Ray must be initialised.

    Returns:
        rows_in, rows_bad (left out, since they can't be read), sentences, words, vocabulary, words_per_s (words of
        all epochs by the seconds of training), seconds, output.

    Raises:
        UsageError: gensim is not installed, there is no text, or OUTPUT is not empty.
        RunError: the run failed; it leaves nothing in OUTPUT.
    """
    started = time.monotonic()
    _require_gensim()
    inputs = discover(request.inputs, format=request.format)
    storage, folder = open_location(request.output)
    check_apart(inputs, request.output)
    if storage.exists(folder) and any(True for _ in storage.children(folder)):
        raise UsageError(f"OUTPUT {storage.uri(folder)} is not empty; give a folder of its own")
    source = read_sample(inputs, types=request.settings.column_types)
    columns = _text_columns(source, request.text_columns)
    say(f"input: {inputs.format}; learning from {', '.join(columns)}")
    beside = os.path.dirname(folder) if storage.is_local else None
    if beside:
        os.makedirs(beside, exist_ok=True)
    with tempfile.TemporaryFile(dir=beside) as file:
        figures: dict[str, Any] = _gather(inputs, source, columns, file, stall_s=request.settings.stall_s)
        corpus = Corpus(file, rows=figures["rows_in"], epochs=request.settings.epochs)
        vectors, trained = _train(corpus, request.settings)
    figures |= {**trained, "seconds": round(time.monotonic() - started, 2), "output": storage.uri(folder)}
    facts = {
        "text_columns": columns,
        "settings": request.settings.model_dump(mode="json"),
        "figures": {name: value for name, value in figures.items() if name != "output"},
        "versions": {name: importlib.metadata.version(name) for name in ("mmbm", "gensim", "ray")},
    }
    _publish(storage, folder, vectors, facts, beside=beside)
    return figures


def _require_gensim() -> None:
    try:
        import gensim  # noqa: F401
    except ImportError:
        raise UsageError("learning word vectors needs gensim: run pip install 'mmbm[train]'") from None


def _text_columns(source: SourceSample, given: list[str]) -> list[str]:
    schema = source.input_schema
    try:
        encodings = choose_encodings(schema, source.rows, given={"text": given}, available=["text"])
    except UsageError as error:
        if given:
            raise
        names = ", ".join(schema.names) or "(none)"
        raise UsageError(f"no text among the columns {names}; name some with --text-column") from error
    return [encoding.column for encoding in encodings]


def _gather(
    inputs: InputSet, source: SourceSample, columns: Sequence[str], file: BinaryIO, *, stall_s: float
) -> dict[str, int]:
    """Append all sentences to `file`; returns how many rows they came from."""
    progress = Progress("read")
    counts = {"rows_in": 0, "rows_bad": 0}
    for block in sentence_blocks(inputs, source, columns, stall_s=stall_s):
        file.write(block.lines)
        if block.rows_bad and not counts["rows_bad"]:
            say(f"WARNING: rows that can't be used are left out and counted; the first: {block.error}")
        counts = {name: count + getattr(block, name) for name, count in counts.items()}
        progress.update(rows=counts["rows_in"])
    progress.update(rows=counts["rows_in"], force=True)
    progress.close()
    return counts


class Corpus:
    """The sentences of a file of `SentenceBlock.lines` as lists of words, as often as they are asked for.

    gensim asks once to count words and then once an epoch, the latter in a thread of its own. Where that thread dies,
    gensim waits for it for ever: so trouble with the disk ends the pass, and `close` tells of it.

    Args:
        rows: of the dataset, for the progress.
    """

    def __init__(self, file: BinaryIO, *, rows: int, epochs: int) -> None:
        self._file, self._rows, self._epochs = file, rows, epochs
        self._size_bytes = file.seek(0, os.SEEK_END)
        self._epoch = -1
        """0 while words are counted."""
        self._error: OSError | None = None
        self._progress = Progress("train")

    def __iter__(self) -> Iterator[list[str]]:
        self._epoch += 1
        done_bytes = 0
        try:
            self._file.seek(0)
            for number, line in enumerate(self._file, start=1):
                done_bytes += len(line)
                if number % _TELL_EVERY == 0 and self._epoch:
                    self._tell(self._epoch - 1 + done_bytes / self._size_bytes)
                yield line.decode().split()
        except OSError as error:
            self._error = error

    def close(self) -> None:
        """End the progress. Raises: OSError: a pass ended early."""
        if self._error:
            raise self._error
        self._progress.update(rows=self._rows * self._epochs, force=True)
        self._progress.close()

    def _tell(self, epochs: float) -> None:
        note = f"(epoch {self._epoch} of {self._epochs})"
        self._progress.update(rows=round(epochs * self._rows), fraction=epochs / self._epochs, note=note)


def _train(corpus: Corpus, settings: Word2VecSettings) -> tuple[Any, dict[str, int]]:
    """gensim's KeyedVectors (V, D), the most frequent word first, and figures.

    Raises:
        UsageError: no words, or none that is frequent enough.
    """
    from gensim.models import Word2Vec

    options = settings.model_dump(exclude={"workers", "column_types", "stall_s"})
    workers = settings.workers or len(os.sched_getaffinity(0))
    model = Word2Vec(sg=1, hs=0, workers=workers, max_vocab_size=_MOST_WORDS, hashfxn=_stable_hash, **options)
    model.build_vocab(corpus)
    words, sentences, vocabulary = model.corpus_total_words, model.corpus_count, len(model.wv)
    if not words:
        raise UsageError("the text of the input holds no words")
    if not vocabulary:
        raise UsageError(
            f"no word occurs {settings.min_count} times among the {words} of the input: give more text, or a smaller "
            "--set min_count=N"
        )
    say(f"{words:,} words, {vocabulary:,} different ones in the vocabulary; training with {workers} threads")
    began = time.monotonic()
    model.train(corpus, total_examples=sentences, epochs=settings.epochs)
    corpus.close()
    words_per_s = round(words * settings.epochs / (time.monotonic() - began))
    figures = {"sentences": sentences, "words": words, "vocabulary": vocabulary, "words_per_s": words_per_s}
    return model.wv, figures


def _stable_hash(text: str) -> int:
    """In place of Python's own, which differs from process to process."""
    return zlib.crc32(text.encode())


def _publish(storage: Storage, folder: str, vectors: Any, facts: dict[str, Any], *, beside: str | None) -> None:
    """Put the model where it belongs: on a disk in one step; elsewhere `word2vec.json`, which makes it one, last."""
    from mmbm_core.encoders.word2vec import WordVectors, write_folder  # loads torch, which nothing before needed

    with tempfile.TemporaryDirectory(dir=beside, prefix=".mmbm-") as draft:
        whole = Path(draft, "model")
        whole.mkdir()
        write_folder(whole, WordVectors(vectors.index_to_key, vectors.vectors), facts=facts)
        if storage.is_local:
            os.replace(whole, folder)
            return
        storage.makedirs(folder)
        files = sorted(whole.iterdir(), key=lambda file: file.suffix == ".json")
        try:
            for file in files:
                pafs.copy_files(str(file), f"{folder}/{file.name}", pafs.LocalFileSystem(), storage.filesystem)
        except BaseException:
            for file in files:
                storage.delete(f"{folder}/{file.name}")
            raise


__all__ = ["Corpus", "Word2VecRequest", "Word2VecSettings", "word2vec"]
