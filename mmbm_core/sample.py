"""The row contract: modalities, column names and Arrow types shared by every part of MMBM.

A row has an `id` and any of text, image and audio; each may be null. See README, "Rows in, rows out".
"""

from typing import Literal, get_args

import pyarrow as pa

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


def vector_type(width: int, *, half: bool = False) -> pa.DataType:
    """Arrow type of one vector: fixed_size_list<float32 or float16>[width]."""
    return pa.list_(pa.float16() if half else pa.float32(), width)
