"""The row contract: modalities, column names and Arrow types shared by every part of MMBM.

A row has an `id` and any of text, image and audio; each may be null. See README, "Rows in, rows out".
"""

from typing import Literal, get_args

import pyarrow as pa

from mmbm_core.compress.vectors import VectorKind, stored_width

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

ID = "id"
"""Unique name of a row; made from the relative path and position where the source has none."""
MODALITIES_COLUMN = "modalities"
"""list<string>: the modalities of the row that its vectors were made from."""
SOURCE_ID, AUGMENTATION = "source_id", "augmentation"
"""Of a row of `mmbm augment`: the id of the row that it was made of, and what made it; null where it is that row."""
EMBEDDING = "embedding"
"""The vector of the whole row; present only where the encoders share one space."""

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field(ID, pa.string()),
        pa.field("source", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("error", pa.string()),
    ]
)


def embedding_column(name: str) -> str:
    """Name of the vector column of a modality or source column: `text` -> `text_embedding`."""
    return f"{name}_{EMBEDDING}"


_VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


def vector_type(width: int, *, kind: VectorKind = "float32") -> pa.DataType:
    """Arrow type of one vector of a width: fixed_size_list<float, int8 or uint8>."""
    return pa.list_(_VECTOR_TYPES[kind], stored_width(width, kind))
