"""Which columns are text, images and sounds: what the command line says, else what names and content say."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from mmbm_core.sample import EMBEDDING, ID, MODALITIES, MODALITIES_COLUMN, Modality, embedding_column
from workers.readers import READERS
from workers.readers.tabular import is_list, is_media_struct

_TEXT_NAMES = (
    *("text", "texts", "caption", "captions", "sentence", "sentences", "text_a", "text_b", "sentence1", "sentence2"),
    *("utterance", "content", "document", "passage", "query", "question", "answer", "prompt", "title", "body", "turns"),
)
_MEDIA_NAMES: dict[Modality, tuple[str, ...]] = {
    "image": ("image", "images", "img", "jpg", "jpeg", "png", "webp", "photo", "picture"),
    "audio": ("audio", "sound", "wav", "mp3", "flac", "ogg", "speech"),
}
_URI_NAMES: dict[str, Modality] = {
    **dict.fromkeys(("image_uri", "image_url", "image_path"), "image"),
    **dict.fromkeys(("audio_uri", "audio_url", "audio_path"), "audio"),
}  # type: ignore[assignment]


def choose_encodings(
    schema: pa.Schema,
    sample: Sequence[dict[str, Any]],
    *,
    given: Mapping[Modality, Sequence[str]],
    available: Sequence[Modality],
) -> tuple[Encoding, ...]:
    """Columns to embed and the names of their vectors.

    Args:
        sample: some rows, for columns whose name says nothing.
        given: columns named on the command line; a modality not in it is found by names and content, where nothing
            was named at all.
        available: modalities that the model encodes.

    Raises:
        UsageError: a named column does not exist, has no model, or nothing to embed was found.
    """
    chosen: list[tuple[str, Modality, bool]] = []
    if any(given.values()):
        for modality, columns in given.items():
            for column in columns:
                check_column(schema, column)
                if modality not in available:
                    raise UsageError(f"--{modality}-column {column}: the model encodes {', '.join(available)} only")
                chosen.append((column, modality, _is_uri(schema, column, modality)))
    else:
        for modality in MODALITIES:
            if modality in available:
                chosen += [(c, modality, u) for c, u in _find(schema, sample, modality)]
    if not chosen:
        raise UsageError(
            f"nothing to embed: no {' or '.join(available)} among the columns {', '.join(schema.names)}; name them "
            "with --text-column, --image-column or --audio-column, or give a --model for what there is"
        )
    counts = {m: sum(1 for _, other, _ in chosen if other == m) for m in MODALITIES}
    encodings = tuple(
        Encoding(column=c, modality=m, uri=u, output=embedding_column(m if counts[m] == 1 else c.replace(".", "_")))
        for c, m, u in chosen
    )
    outputs = [e.output for e in encodings]
    twice = sorted({e.column for e in encodings if outputs.count(e.output) > 1})
    if twice:
        raise UsageError(f"columns {', '.join(twice)} would share a vector column; name each once, or rename them")
    return encodings


def check_clashes(encodings: Sequence[Encoding], kept: Sequence[str]) -> None:
    """Refuse source columns whose names the output needs itself.

    Raises:
        UsageError: which ones, and the way out.
    """
    refuse_names({ID, MODALITIES_COLUMN, EMBEDDING, *(e.output for e in encodings)}, kept)


def refuse_names(own: Collection[str], kept: Collection[str]) -> None:
    """The same for any names.

    Raises:
        UsageError: which ones, and the way out.
    """
    clashes = sorted(set(own) & set(kept))
    if clashes:
        raise UsageError(
            f"source columns {', '.join(clashes)} have names that the output needs; leave them out with "
            f"--set drop_columns={','.join(clashes)}, or rename them in the source"
        )


def kept_columns(
    schema: pa.Schema, encodings: Sequence[Encoding], *, id_column: str | None, drop: Sequence[str], keep_media: bool
) -> list[str]:
    """Source columns that travel to the output: all but the id, raw media and those left out on request.

    Raises:
        UsageError: `drop` names a column that there is not.
    """
    unknown = sorted(set(drop) - set(schema.names))
    if unknown:
        raise UsageError(f"drop_columns names {', '.join(unknown)}; the columns are {', '.join(schema.names)}")
    names = {*_MEDIA_NAMES["image"], *_MEDIA_NAMES["audio"]}
    media = {top_column(schema, e.column) for e in encodings if _holds_media(e)}
    media |= {f.name for f in schema if is_media_struct(f.type) or (f.name.lower() in names and _is_media(f.type))}
    out = set(drop) | ({ID} if id_column == ID else set()) | (set() if keep_media else media)
    return [name for name in schema.names if name not in out]


def top_column(schema: pa.Schema, column: str) -> str:
    """The column of the schema that `column`, whose dots may reach into a struct, is or lies in."""
    return column if column in schema.names else column.split(".")[0]


def column_type(schema: pa.Schema, column: str) -> pa.DataType | None:
    """Type of a column as `get_column` gives it; None where there is no such column."""
    if column in schema.names:
        return schema.field(column).type
    name, *parts = column.split(".")
    kind = schema.field(name).type if name in schema.names else None
    listed = False
    for part in parts:
        while kind is not None and is_list(kind):
            kind, listed = kind.value_type, True
        index = kind.get_field_index(part) if kind is not None and pa.types.is_struct(kind) else -1
        kind = kind.field(index).type if index >= 0 else None  # type: ignore[union-attr]
    return pa.list_(kind) if listed and kind is not None else kind


def get_column(row: dict[str, Any], column: str) -> Any:
    """Value of a column; dots reach into structs (and through lists of them)."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, list):
            value = [v.get(part) if isinstance(v, dict) else None for v in value]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def check_column(schema: pa.Schema, column: str) -> None:
    """Raises: UsageError: no such column; names those there are, and the fields of the struct it begins with."""
    if column_type(schema, column) is None:
        known = [*schema.names, *_fields(schema, column.split(".")[0])]
        raise UsageError(f"no column {column!r}; the columns are {', '.join(known)}")


def _fields(schema: pa.Schema, column: str) -> list[str]:
    kind = column_type(schema, column)
    while kind is not None and is_list(kind):
        kind = kind.value_type
    return [f"{column}.{f.name}" for f in kind] if kind is not None and pa.types.is_struct(kind) else []


def _is_uri(schema: pa.Schema, column: str, modality: Modality) -> bool:
    kind = column_type(schema, column)
    return modality != "text" and kind is not None and (_is_string(kind) or _is_string_list(kind))


def _holds_media(encoding: Encoding) -> bool:
    return encoding.modality != "text" and not encoding.uri


def _find(schema: pa.Schema, sample: Sequence[dict[str, Any]], modality: Modality) -> list[tuple[str, bool]]:
    if modality == "text":
        strings = [f.name for f in schema if _is_string(f.type) or _is_string_list(f.type) or pa.types.is_null(f.type)]
        named = [c for c in strings if c.lower() in _TEXT_NAMES]
        if named:
            first = named[0].lower() if named[0].lower() in ("text", "caption", "captions") else None
            return [(named[0], False)] if first else [(c, False) for c in named]
        return [(c, False) for c in strings if c != ID and _is_prose([row.get(c) for row in sample])]
    uris = [(c, True) for c in schema.names if _URI_NAMES.get(c.lower()) == modality and _is_uri(schema, c, modality)]
    binary = [f.name for f in schema if _is_media(f.type)]
    named = [c for c in binary if c.lower() in _MEDIA_NAMES[modality]]
    found = named or [c for c in binary if _shows(modality, [row.get(c) for row in sample])]
    return [(c, False) for c in found] + uris


def _is_prose(values: Sequence[Any]) -> bool:
    """Mostly several words, mostly different from each other: no labels, ids or paths."""
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    texts = [v for v in flat if isinstance(v, str) and v.strip()]
    if not texts:
        return False
    several = sum(len(t.split()) > 1 for t in texts) / len(texts)
    return several > 0.5 and (len(set(texts)) > 0.5 * len(texts) or len(texts) < 5)


def _shows(modality: Modality, values: Sequence[Any]) -> bool:
    """Do the values begin as files of this modality do?"""
    reader = READERS[f"{modality}_folder"]
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    heads = [v.get("bytes") if isinstance(v, dict) else v for v in flat]
    known = [h for h in heads if isinstance(h, bytes) and h]
    return bool(known) and sum(reader.sniff(h[:4096]) for h in known) > 0.5 * len(known)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_string_list(kind: pa.DataType) -> bool:
    return is_list(kind) and _is_string(kind.value_type)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_media(kind: pa.DataType) -> bool:
    if is_list(kind):
        return _is_media(kind.value_type)
    return _is_binary(kind) or bool(is_media_struct(kind))
