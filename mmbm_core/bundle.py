"""A bundle: one encoder for each modality.

`load_bundle("minilm,efficientnet-lite0,mfcc").embed([{"text": "a red disc"}])` is the whole library use; the batch
workers call the same code. Shapes: `N` values, `D` width.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmbm_core.batching import BatchEncoder
from mmbm_core.encoders import build_encoder, modalities_of
from mmbm_core.encoders.base import Encoder, Item, without_jpeg
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.names import DEFAULT_MODEL, EXACT
from mmbm_core.rows import Encoding, Vectors, cells_of, embed_cells, missing_error, modalities_array, vector_array
from mmbm_core.sample import EMBEDDING, MODALITIES, MODALITIES_COLUMN, Modality, embedding_column

_WINDOW: dict[Modality, int] = {"text": 4096, "image": 128, "audio": 16}
"""Values prepared at once: enough to sort by length, few enough to keep decoded media small."""


class Bundle:
    """Encoders by modality, in one resolved precision.

    Args:
        encoders: each with the name it was asked for by.
        kernels: what each name runs on: `exact`, or what `Encoder.accelerate` returned.
        spaces: space fingerprint of each name.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        *,
        kernels: dict[str, str],
        spaces: dict[str, str],
        limits: Limits = DEFAULT_LIMITS,
        budget: dict[Modality, int] | None = None,
        prepare_threads: int = 1,
    ) -> None:
        self.kernels = kernels
        self.spaces = spaces
        self.limits = limits
        self.encoders: dict[Modality, BatchEncoder] = {}
        self.names: dict[Modality, str] = {}
        for name, encoder in encoders.items():
            batch_encoder = BatchEncoder(encoder, budget=budget)
            for modality in encoder.modalities:
                if modality in self.encoders:
                    raise UsageError(f"two models encode {modality}: {', '.join(encoders)}; give one for each modality")
                self.encoders[modality] = batch_encoder
                self.names[modality] = name
        self._threads = ThreadPoolExecutor(prepare_threads) if prepare_threads > 1 else None
        self._ahead = ThreadPoolExecutor(1) if any(e.device.type != "cpu" for e in encoders.values()) else None

    @property
    def fast_kernels(self) -> dict[str, tuple[str, ...]]:
        """By name: what each encoder could run on, fastest first."""
        return {self.names[m]: e.encoder.fast_kernels() for m, e in self.encoders.items()}

    @property
    def widths(self) -> dict[Modality, int]:
        """D of each modality that can be encoded."""
        return {m: e.encoder.width for m, e in self.encoders.items()}

    @property
    def shared(self) -> frozenset[Modality]:
        """Modalities whose vectors may be compared with each other."""
        return frozenset(m for m, e in self.encoders.items() if e.encoder.shared_space)

    def encode(self, requests: list[tuple[Modality, list[Any]]]) -> list[Vectors]:
        """Encode each list of values; a bad value gives an error, never an exception."""
        return [self.encode_values(modality, values) for modality, values in requests]

    def encode_values(self, modality: Modality, values: Sequence[Any]) -> Vectors:
        """Encode N strings or encoded files to (N, D)."""
        result = Vectors(np.zeros((len(values), self.widths[modality]), dtype=np.float32), {}, set())
        for start, prepared in self._windows(modality, values):
            window = self.encode_prepared(modality, prepared)
            result.values[start : start + len(prepared)] = window.values
            result.errors.update({start + i: error for i, error in window.errors.items()})
            result.cut.update(start + i for i in window.cut)
        return result

    def encode_prepared(self, modality: Modality, prepared: Sequence[Item | MediaError]) -> Vectors:
        """Encode what the encoder's `prepare` made of N values."""
        result = Vectors(np.zeros((len(prepared), self.widths[modality]), dtype=np.float32), {}, set())
        good = {i: item for i, item in enumerate(prepared) if isinstance(item, Item)}
        result.errors.update({i: str(e) for i, e in enumerate(prepared) if isinstance(e, MediaError)})
        result.cut.update(i for i, item in good.items() if item.cut)
        if good:
            result.values[list(good)] = self.encoders[modality](modality, list(good.values()))
        broken = np.flatnonzero(~np.isfinite(result.values).all(axis=1))
        result.errors.update({int(i): "the model gave a vector that is not finite" for i in broken})
        result.values[broken] = 0
        return result

    def embed(self, rows: pa.Table | Sequence[Mapping[str, Any]]) -> pa.Table:
        """Embed rows with any of the columns `text`, `image`, `audio` (strings, encoded bytes, lists of them, null).

        Returns:
            One row each, in order: `modalities`, the vector columns, and `error` ("" where all is well; a row with
            none of the modalities is an error).

        Raises:
            UsageError: no column that this bundle can encode.
        """
        wanted = [m for m in self.encoders if isinstance(rows, pa.Table) and m in rows.column_names]
        listed = rows.select(wanted).to_pylist() if isinstance(rows, pa.Table) else rows
        names = set(rows.column_names) if isinstance(rows, pa.Table) else {name for row in listed for name in row}
        modalities = [m for m in MODALITIES if m in names and m in self.encoders]
        if not modalities:
            raise UsageError(f"no column to embed among {sorted(names)}; this bundle takes {sorted(self.encoders)}")
        encodings = [Encoding(column=m, modality=m, output=embedding_column(m)) for m in modalities]
        columns = [(e, cells_of([row.get(e.column) for row in listed], e.modality)) for e in encodings]
        embedded = embed_cells(columns, encode=self.encode, widths=self.widths, shared=self.shared)
        vectors = {o: vector_array(v, embedded.present[o]) for o, v in embedded.vectors.items()}
        errors = ["; ".join(f"{m}: {e}" for m, e in row.items()) for row in embedded.errors]
        missing = missing_error(modalities)
        errors = [e or ("" if m else missing) for e, m in zip(errors, embedded.modalities, strict=True)]
        return pa.table({MODALITIES_COLUMN: modalities_array(embedded.modalities), **vectors, "error": errors})

    def _windows(self, modality: Modality, values: Sequence[Any]) -> Iterator[tuple[int, list[Item | MediaError]]]:
        """Prepared windows; on an accelerator the next is prepared while the model works on this one."""
        starts = range(0, len(values), _WINDOW[modality])
        if self._ahead is None:
            yield from ((start, self._prepare(modality, values, start)) for start in starts)
            return
        pending: list[tuple[int, Future[list[Item | MediaError]]]] = []
        for start in starts:
            pending.append((start, self._ahead.submit(self._prepare, modality, values, start)))
            if len(pending) > 2:
                at, future = pending.pop(0)
                yield at, future.result()
        for at, future in pending:
            yield at, future.result()

    def _prepare(self, modality: Modality, values: Sequence[Any], start: int) -> list[Item | MediaError]:
        window = values[start : start + _WINDOW[modality]]
        if self._threads is None or modality == "text":  # tokenizers have threads of their own
            return self.prepare_values(modality, window)
        return list(self._threads.map(lambda value: self.prepare_values(modality, [value])[0], window))

    def prepare_values(self, modality: Modality, values: Sequence[Any]) -> list[Item | MediaError]:
        """Items of N values. Where a tokenizer or a decoder fails in its own way, the values are tried one by one."""
        try:
            return self.encoders[modality].encoder.prepare(modality, values, limits=self.limits)
        except Exception as error:
            if len(values) == 1:
                return [MediaError(f"{modality} can't be prepared ({type(error).__name__})")]
            return [self.prepare_values(modality, [value])[0] for value in values]


def load_bundle(
    model: str = DEFAULT_MODEL,
    *,
    precision: str = EXACT,
    kernels: dict[str, str] | None = None,
    options: dict[str, dict[str, Any]] | None = None,
    device: str = "cpu",
    limits: Limits = DEFAULT_LIMITS,
    budget: dict[Modality, int] | None = None,
    prepare_threads: int = 1,
) -> Bundle:
    """Load the encoders named in `model`, joined by commas.

    Args:
        precision: `exact` (float32, equal to the reference library) or `fast` (the first of
            the encoder's `fast_kernels`; `mmbm embed` takes the first that agrees with exact on a sample).
        kernels: the resolved kernels of a planned run, by name; takes the place of `precision`.
        options: encoder options by modality, such as {"text": {"pooling": "cls"}}.
        budget: cost per batch by modality; see `Encoder.budget`.

    Raises:
        UsageError: an unknown model or option, or this machine lacks the kernels asked for.
    """
    if precision not in (EXACT, "fast"):
        raise UsageError(f"precision {precision!r} is unknown; allowed: exact, fast")
    encoders: dict[str, Encoder] = {}
    used: dict[str, str] = {}
    spaces: dict[str, str] = {}
    for name in [part.strip() for part in model.split(",") if part.strip()]:
        encoder = encoders[name] = _build(name, options or {})
        spaces[name] = encoder.space_fingerprint()
        encoder.to(torch.device(device))
        can = (*encoder.fast_kernels(), EXACT)
        used[name] = kernels[name] if kernels else (EXACT if precision == EXACT else can[0])
        if used[name] not in (*can, *map(without_jpeg, can)):
            raise UsageError(f"this machine can't run {name} with {used[name]}; it has {', '.join(can)}; use exact")
        if used[name] != EXACT:
            encoder.accelerate(used[name])
    if not encoders:
        raise UsageError("no model was named")
    return Bundle(encoders, kernels=used, spaces=spaces, limits=limits, budget=budget, prepare_threads=prepare_threads)


def _build(name: str, options: dict[str, dict[str, Any]]) -> Encoder:
    """Options are by modality: a joint encoder takes those of each of its modalities."""
    return build_encoder(name, **{k: v for m in modalities_of(name) for k, v in options.get(m, {}).items()})


__all__ = ["DEFAULT_MODEL", "EMBEDDING", "EXACT", "Bundle", "load_bundle"]
