"""All that a worker needs to know of a run. Settled by the driver once, equal on every node."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from mmbm_core.compress.vectors import VectorKind
from mmbm_core.media import Limits
from mmbm_core.rows import Encoding
from mmbm_core.sample import EMBEDDING, ID, MODALITIES_COLUMN, Modality, vector_type
from mmbm_core.urls import UrlPolicy
from workers.columns import top_column
from workers.output import Output
from workers.readers.base import UnitSize
from workers.readers.tabular import is_list


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The model of a run, its precision resolved."""

    model: str
    kernels: dict[str, str]
    """By name: `exact`, or the fast kernels every node must have."""
    spaces: dict[str, str]
    """Space fingerprint by name."""
    widths: dict[Modality, int]
    shared: tuple[Modality, ...]
    options: dict[str, dict[str, Any]]
    fusion: str = ""
    """Name of the trained bundle whose fusion makes `embedding` of the shared modalities; "" takes their mean."""
    tokens: dict[Modality, int] = field(default_factory=dict)
    """K of each modality that the fusion takes."""

    @property
    def value_widths(self) -> dict[Modality, int]:
        """Of a value's vector, as it goes into the fusion where there is one."""
        return {m: width * self.tokens.get(m, 1) for m, width in self.widths.items()}

    @property
    def space(self) -> str:
        """Fingerprint of all encoders: vectors are comparable only within one. That of a single model is its own."""
        return next(iter(self.spaces.values())) if len(self.spaces) == 1 else fingerprint(self.spaces)

    @property
    def build(self) -> str:
        """Space, precision and kernels."""
        return fingerprint([self.spaces, self.kernels])


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """Which rows a source gives: what `RowGuard` needs to know."""

    source_schema: pa.Schema
    encodings: tuple[Encoding, ...]
    kept: tuple[str, ...]
    """Source columns that travel on as they are."""
    id_column: str | None
    explode: str | None
    urls: UrlPolicy

    def kept_field(self, name: str) -> pa.Field:
        """A kept column as it travels on: of an exploded one, the elements."""
        field = self.source_schema.field(name)
        if name == self.explode and is_list(field.type):
            return pa.field(name, field.type.value_type)
        return field.remove_metadata()


@dataclass(frozen=True, kw_only=True)
class UnitSpec(RowSpec, ABC):
    """What a worker needs to do units of any kind: which rows, and where they go."""

    output: Output
    format: str
    on_bad_modality: Literal["quarantine", "drop"]
    limits: Limits
    unit_size: UnitSize

    @property
    @abstractmethod
    def recipe(self) -> str:
        """Hash of all that decides what becomes of a value."""

    @abstractmethod
    def output_schema(self) -> pa.Schema:
        """Columns of every part, in order."""

    @property
    def settings(self) -> str:
        """Hash of all that shapes a part: one of the facts in a unit's key."""
        return fingerprint(
            {
                "recipe": self.recipe,
                "types": self._read_types(),
                "schema": str(self.output_schema()),
                "encodings": [asdict(e) for e in self.encodings],
                "id": self.id_column,
                "explode": self.explode,
                "bad": self.on_bad_modality,
                "unit": asdict(self.unit_size),
                "format": self.format,
            }
        )

    def _read_types(self) -> dict[str, str]:
        """Of the source columns that shape a part without being kept as they are."""
        names = [self.id_column, self.explode, *(e.column for e in self.encodings)]
        tops = {top_column(self.source_schema, name) for name in names if name}
        return {n: str(self.source_schema.field(n).type) for n in sorted(tops) if n in self.source_schema.names}


@dataclass(frozen=True, kw_only=True)
class RunSpec(UnitSpec):
    """Settings of one embed run."""

    model: ModelSpec
    vectors: VectorKind
    budget: dict[Modality, int]
    device: str
    threads: int
    pools: Any = None
    """Actors that encode for the unit workers (`workers.placement.Pools`); None where each holds its encoders."""

    @property
    def recipe(self) -> str:
        """Hash of all that decides a value's vector, or that it gets none: rows of an equal recipe are reused."""
        return fingerprint([self.model.build, asdict(self.limits)])

    def output_schema(self) -> pa.Schema:
        """Columns of every part, in order: id, modalities, vectors, then what the source brings."""
        vectors = {e.output: self.model.widths[e.modality] for e in self.encodings}
        shared = [e.output for e in self.encodings if e.modality in self.model.shared]
        if len(shared) == 1:
            vectors = {EMBEDDING if name == shared[0] else name: width for name, width in vectors.items()}
        elif shared:
            vectors = {EMBEDDING: vectors[shared[0]], **vectors}
        return pa.schema(
            [
                pa.field(ID, pa.string()),
                pa.field(MODALITIES_COLUMN, pa.list_(pa.string())),
                *[pa.field(name, vector_type(width, kind=self.vectors)) for name, width in vectors.items()],
                *[self.kept_field(name) for name in self.kept],
            ]
        )


def fingerprint(facts: Any) -> str:
    """16 hex digits that name JSON-like facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
