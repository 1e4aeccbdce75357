"""A bundle: one encoder for each modality, and the fusion of a trained model.

`load_bundle("minilm,efficientnet-lite0,mfcc").embed([{"text": "a red disc"}])` is the whole library use; the batch
workers call the same code. Shapes: `N` values, `K` tokens of a value that a fusion takes (1 without), `D` width.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmbm_core.batching import BatchEncoder
from mmbm_core.encoders import build_encoder, modalities_of
from mmbm_core.encoders.base import Encoder, Item, without_jpeg
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.media import DEFAULT_LIMITS, Limits
from mmbm_core.names import DEFAULT_MODEL, EXACT, model_names, split_part
from mmbm_core.rows import Encoding, Vectors, cells_of, embed_cells, missing_error, modalities_array, unit, vector_array
from mmbm_core.sample import EMBEDDING, MODALITIES, MODALITIES_COLUMN, Modality, embedding_column
from mmbm_core.saved import find_part
from mmbm_core.trained import AdaptedEncoder, Trained, join_parts, load_trained

_WINDOW: dict[Modality, int] = {"text": 4096, "image": 128, "audio": 16}
"""Values prepared at once: enough to sort by length, few enough to keep decoded media small."""


class Bundle:
    """Encoders by modality, in one resolved precision.

    Args:
        encoders: each with the name it was asked for by.
        kernels: what each name runs on: `exact`, or what `Encoder.accelerate` returned.
        spaces: space fingerprint of each name; of a trained bundle, its own.
        trained: what is loaded of a trained bundle, where `encoders` holds some of it.

    Raises:
        UsageError: two models encode one modality, or each has a shared space of its own.
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
        trained: Trained | None = None,
    ) -> None:
        self.model = trained.model if trained else None
        """The trained model whose encoders these are."""
        self.fuse = trained.fuse if trained else None
        """Its fusion: makes `embedding` of the shared modalities' vectors in place of their mean."""
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
        spaces_shared = {split_part(self.names[m])[0] for m in self.shared}
        if len(spaces_shared) > 1:
            both = " and ".join(sorted(spaces_shared))
            raise UsageError(f"{both} have each a shared space of their own, and a row has one `embedding`: name one")
        self._threads = ThreadPoolExecutor(prepare_threads) if prepare_threads > 1 else None
        self._ahead = ThreadPoolExecutor(1) if any(e.device.type != "cpu" for e in encoders.values()) else None

    @property
    def fast_kernels(self) -> dict[str, tuple[str, ...]]:
        """By name: what each encoder could run on, fastest first."""
        return {self.names[m]: e.encoder.fast_kernels() for m, e in self.encoders.items()}

    @property
    def widths(self) -> dict[Modality, int]:
        """D of each modality that can be encoded."""
        return {m: e.encoder.width // self.tokens.get(m, 1) for m, e in self.encoders.items()}

    @property
    def tokens(self) -> dict[Modality, int]:
        """K of each modality that a fusion takes: a value's vector then is (K x D,)."""
        adapted = {m: e.encoder for m, e in self.encoders.items() if self.fuse is not None}
        return {m: e.num_tokens for m, e in adapted.items() if isinstance(e, AdaptedEncoder)}

    @property
    def shared(self) -> frozenset[Modality]:
        """Modalities whose vectors may be compared with each other."""
        return frozenset(m for m, e in self.encoders.items() if e.encoder.shared_space)

    def encode(self, requests: list[tuple[Modality, list[Any]]]) -> list[Vectors]:
        """Encode each list of values; a bad value gives an error, never an exception."""
        return [self.encode_values(modality, values) for modality, values in requests]

    def encode_values(self, modality: Modality, values: Sequence[Any]) -> Vectors:
        """Encode N strings or encoded files to (N, K x D)."""
        result = Vectors(np.zeros((len(values), self.encoders[modality].encoder.width), dtype=np.float32), {}, set())
        for start, prepared in self._windows(modality, values):
            window = self.encode_prepared(modality, prepared)
            result.values[start : start + len(prepared)] = window.values
            result.errors.update({start + i: error for i, error in window.errors.items()})
            result.cut.update(start + i for i in window.cut)
        return result

    def encode_prepared(self, modality: Modality, prepared: Sequence[Item | MediaError]) -> Vectors:
        """Encode what the encoder's `prepare` made of N values."""
        result = Vectors(np.zeros((len(prepared), self.encoders[modality].encoder.width), dtype=np.float32), {}, set())
        good = {i: item for i, item in enumerate(prepared) if isinstance(item, Item)}
        result.errors.update({i: str(e) for i, e in enumerate(prepared) if isinstance(e, MediaError)})
        result.cut.update(i for i, item in good.items() if item.cut)
        if good:
            result.values[list(good)] = self.encoders[modality](modality, list(good.values()))
        broken = np.flatnonzero(~np.isfinite(result.values).all(axis=1))
        result.errors.update({int(i): "the model gave a vector that is not finite" for i in broken})
        result.values[broken] = 0
        return result

    def embed_prepared(self, rows: Sequence[Mapping[Modality, Item]]) -> list[np.ndarray | MediaError]:
        """A vector (D,) for each of N rows: what `embedding` of a row is, or the vector of its only value.

        Args:
            rows: what `prepare_values` made of each modality that a row has.

        Returns:
            In place of a vector, what is wrong with the row.
        """
        values: dict[Modality, np.ndarray] = {}
        present: dict[Modality, np.ndarray] = {}
        wrong: dict[int, MediaError] = {i: e for i, row in enumerate(rows) if (e := self._misfit(row))}
        for modality, batch_encoder in self.encoders.items():
            here = [i for i, row in enumerate(rows) if modality in row]
            if here:
                found = self.encode_prepared(modality, [rows[i][modality] for i in here])
                wrong |= {here[i]: MediaError(f"{modality}: {error}") for i, error in found.errors.items()}
                values[modality] = np.zeros((len(rows), batch_encoder.encoder.width), dtype=np.float32)
                values[modality][here] = found.values
                present[modality] = np.isin(np.arange(len(rows)), here)
        joint = self._joint({m: v for m, v in values.items() if m in self.shared}, present)
        vectors: list[np.ndarray | MediaError] = []
        for i, row in enumerate(rows):
            if i in wrong:
                vectors.append(wrong[i])
                continue
            modality = next(iter(row))
            vector = (joint if modality in self.shared else values[modality])[i]
            good = np.isfinite(vector).all()
            vectors.append(vector if good else MediaError("the fusion gave a vector that is not finite"))
        return vectors

    def _misfit(self, row: Mapping[Modality, Item]) -> MediaError | None:
        if not row:
            return MediaError(missing_error(self.encoders))
        if len(row) > 1 and not set(row) <= self.shared:
            return MediaError(f"{' and '.join(row)} have no space in common in this model: send them one by one")
        return None

    def _joint(self, values: Mapping[Modality, np.ndarray], present: Mapping[Modality, np.ndarray]) -> np.ndarray:
        """(N, D): the fusion of what rows have of the shared modalities, or its normalised mean."""
        if not values:
            return np.zeros((0, 0), dtype=np.float32)
        if self.fuse is not None:
            return self.fuse(dict(values), {m: present[m] for m in values})
        return unit(np.sum([unit(v) * present[m][:, None] for m, v in values.items()], axis=0)).astype(np.float32)

    def alone(self, modality: Modality, vectors: Vectors) -> Vectors:
        """What rows that hold one of N values each, and nothing else, get of vectors (N, K x D): (N, D)."""
        if self.fuse is None or modality not in self.tokens:
            return vectors
        present = np.ones(len(vectors.values), dtype=bool)
        return vectors._replace(values=self.fuse({modality: vectors.values}, {modality: present}))

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
        widths = {m: e.encoder.width for m, e in self.encoders.items()}
        embedded = embed_cells(columns, encode=self.encode, widths=widths, shared=self.shared, fuse=self.fuse)
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
    folders: Mapping[str, Path] | None = None,
) -> Bundle:
    """Load what is named in `model`, joined by commas: encoders, or the folder of a trained bundle.

    `BUNDLE#text` is the part of a trained bundle that takes texts.

    Args:
        precision: `exact` (float32, equal to the reference library) or `fast` (the first of
            the encoder's `fast_kernels`; `mmbm embed` takes the first that agrees with exact on a sample).
        kernels: the resolved kernels of a planned run, by name; takes the place of `precision`.
        options: encoder options by modality, such as {"text": {"pooling": "cls"}}.
        budget: cost per batch by modality; see `Encoder.budget`.
        folders: where trained bundles lie that are not named by their folder.

    Raises:
        UsageError: an unknown model or option, a damaged bundle, or this machine lacks the kernels asked for.
    """
    if precision not in (EXACT, "fast"):
        raise UsageError(f"precision {precision!r} is unknown; allowed: exact, fast")
    parts = {name: find_part(name, folders=folders) for name in model_names(model)}
    if not parts:
        raise UsageError("no model was named")
    joined = join_parts([part for part in parts.values() if part])
    trained = load_trained(joined, options=options) if joined else None
    encoders: dict[str, Encoder] = {}
    spaces: dict[str, str] = {}
    for name, part in parts.items():
        if part and trained:
            encoders |= {each: trained.encoders[each] for each in part.parts}
            spaces[part.name] = trained.space
        else:
            encoders[name] = _build(name, options or {})
            spaces[name] = encoders[name].space_fingerprint()
    if trained:
        trained.model.to(torch.device(device))
    used = {n: _set_kernels(n, e.to(torch.device(device)), kernels or {}, precision) for n, e in encoders.items()}
    return Bundle(
        encoders, kernels=used, spaces=spaces, limits=limits, budget=budget, prepare_threads=prepare_threads,
        trained=trained,
    )  # fmt: skip


def _build(name: str, options: dict[str, dict[str, Any]]) -> Encoder:
    """Options are by modality: a joint encoder takes those of each of its modalities."""
    return build_encoder(name, **{k: v for m in modalities_of(name) for k, v in options.get(m, {}).items()})


def _set_kernels(name: str, encoder: Encoder, kernels: dict[str, str], precision: str) -> str:
    """Let an encoder run on what was resolved for it, or else on what `precision` asks for."""
    can = (*encoder.fast_kernels(), EXACT)
    used = kernels[name] if kernels else (EXACT if precision == EXACT else can[0])
    if used not in (*can, *map(without_jpeg, can)):
        raise UsageError(f"this machine can't run {name} with {used}; it has {', '.join(can)}; use exact")
    if used != EXACT:
        encoder.accelerate(used)
    return used


__all__ = ["DEFAULT_MODEL", "EMBEDDING", "EXACT", "Bundle", "load_bundle"]
