"""Tokens of frozen encoders, computed once: a file for each unit, in the order of its rows.

A file's name is the unit, its source's version, the encoders and all that decides which rows there are: what has not
changed is read again by any later training.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from mmbm_core.bundle import Bundle
from mmbm_core.encoders import build_encoder
from mmbm_core.encoders.base import Encoder
from mmbm_core.encoders.segments import SegmentEncoder
from mmbm_core.media import Limits
from mmbm_core.names import EXACT
from mmbm_core.rows import Encoding, cells_of, embed_cells, vector_array
from mmbm_core.sample import ID, Modality
from workers.bundles import local_bundle
from workers.output import unit_key
from workers.readers.base import Unit
from workers.spec import fingerprint
from workers.storage import Storage
from workers.training.rows import SetSpec, read_unit

_ERRORS, _CUT = b"mmbm.errors", b"mmbm.cut"


class Trouble(NamedTuple):
    """What was wrong with the values of some rows."""

    errors: list[str]
    """One for each value that can't be used."""
    cut: int
    """Values that are longer than the encoder takes."""


@dataclass(frozen=True, kw_only=True)
class FrozenEncoder:
    """An encoder whose tokens are stored."""

    model: str
    options: dict[str, Any]
    tokens: int
    """K: the stored vector of a value is K tokens, one after the other."""
    space: str
    """Fingerprint of its weights and preprocessing."""
    bundle: str | None = None
    """The bundle whose encoder it is; `model` then is a folder of it."""

    def build(self) -> Encoder:
        """The encoder itself."""
        if self.bundle is None:
            return build_encoder(self.model, **self.options)
        with local_bundle(self.bundle) as folder:
            return build_encoder(str(folder / self.model), **self.options)


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is stored of one training set."""

    rows: SetSpec
    """With the columns of frozen encoders alone."""
    encoders: Mapping[Modality, FrozenEncoder]
    limits: Limits
    storage: Storage
    folder: str

    @property
    def settings(self) -> str:
        """Hash of all that decides what a unit's file holds."""
        rows = self.rows
        return fingerprint(
            {
                "encoders": {m: [e.space, e.tokens] for m, e in self.encoders.items()},
                "encodings": [asdict(e) for e in rows.encodings],
                "schema": str(rows.source_schema),
                "id": rows.id_column,
                "explode": rows.explode,
                "turns": rows.turns,
                "format": rows.format,
                "limits": asdict(self.limits),
            }
        )

    def path(self, unit: Unit) -> str:
        """Where the file of a unit lies."""
        return f"{self.folder}/{self.settings}/{unit_key(unit, self.settings)}.parquet"


def feature_column(encoding: Encoding) -> str:
    """Column of a file: the stored vectors of one column of the source."""
    return f"{encoding.output}.tokens"


@ray.remote(max_restarts=2, max_task_retries=2)
class FeatureActor:
    """Encodes units with frozen encoders."""

    def __init__(self, spec: FeatureSpec, *, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.spec = spec
        encoders = {
            m: SegmentEncoder(e.build(), num_segments=e.tokens).to(torch.device(device))
            for m, e in spec.encoders.items()
        }
        self.bundle = Bundle(
            {str(m): e for m, e in encoders.items()}, kernels=dict.fromkeys(encoders, EXACT), spaces={},
            limits=spec.limits, prepare_threads=threads,
        )  # fmt: skip

    def encode(self, storage: Storage, unit: Unit) -> Trouble:
        """Write the file of a unit."""
        table = read_unit(self.spec.rows, storage, unit)
        encodings = self.spec.rows.encodings
        listed = {e: table[e.output].to_pylist() for e in encodings}
        renamed = [(replace(e, output=feature_column(e)), cells_of(cells, e.modality)) for e, cells in listed.items()]
        embedded = embed_cells(renamed, encode=self.bundle.encode, widths=self.bundle.widths)
        vectors = {o: vector_array(v, embedded.present[o]) for o, v in embedded.vectors.items()}
        ids = table[ID].to_pylist()
        errors = [f"{ids[i]}: {m}: {error}" for i, row in enumerate(embedded.errors) for m, error in row.items()]
        errors += [
            f"{ids[i]}: {e.modality} can't be read" for e, c in listed.items() for i, v in enumerate(c) if v == []
        ]
        trouble = Trouble(errors, int(embedded.cut.sum()))
        stored = pa.table(vectors).replace_schema_metadata({_ERRORS: json.dumps(errors), _CUT: str(trouble.cut)})
        sink = pa.BufferOutputStream()
        pq.write_table(stored, sink, compression="NONE", use_dictionary=False, write_statistics=False)
        self.spec.storage.write_bytes(self.spec.path(unit), sink.getvalue())
        return trouble


def stored_trouble(storage: Storage, path: str) -> Trouble:
    """What was wrong with values when the file of a unit was written."""
    with storage.open_input(path) as file:
        told = pq.read_metadata(file).metadata or {}
    return Trouble(list(json.loads(told[_ERRORS])), int(told.get(_CUT, 0)))
