"""Items of a request as rows: a string, or encoded media, for each modality."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from deploy.serving.errors import ApiError
from deploy.serving.links import Link, fetch_links
from deploy.serving.schemas import (
    AudioPart,
    CohereInput,
    ContentItem,
    ImagePart,
    InputItem,
    Message,
    ModalItem,
    TextPart,
)
from deploy.serving.settings import ServeSettings
from mmbm_core.dialogue import join_turns
from mmbm_core.sample import Modality

_DATA_URI = re.compile(r"data:[\w.+\-]*/?[\w.+\-]*(?:;[\w.+\-]+=[\w.+\-]+)*;base64,", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://")

Row = dict[Modality, Any]
"""Text as a string or token ids; media as bytes."""


async def rows_of(
    items: Sequence[InputItem | CohereInput | list[int]], settings: ServeSettings, *, param: str
) -> list[Row]:
    """A row for each item.

    Args:
        param: the member of the request that they come from.

    Raises:
        ApiError: too many items, or one that can't be used; its `param` names it.
    """
    if len(items) > settings.items:
        raise ApiError(413, f"{len(items)} items; a request takes {settings.items}", code="too_many_items", param=param)
    rows = [_row(item, f"{param}[{i}]") for i, item in enumerate(items)]
    _check_media(sum(modality != "text" for row in rows for modality in row), settings, param)
    return await fetch_links(rows, settings)


def places(param: str, rows: Sequence[Row]) -> list[str]:
    """Where in the request each row comes from."""
    return [f"{param}[{i}]" for i in range(len(rows))]


async def conversation_row(messages: Sequence[Message], *, turns: int | None, settings: ServeSettings) -> Row:
    """What a conversation asks: its last turns as one text, and the last picture and sound in it.

    Args:
        turns: texts that the model takes, at most; None: all.

    Raises:
        ApiError: a part can't be used, or there is nothing.
    """
    row: Row = {}
    said: list[str] = []
    media = 0
    for i, message in enumerate(messages):
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        texts = []
        for j, part in enumerate(parts or []):
            modality, value = _part(part, f"messages[{i}].content[{j}]")
            if modality == "text":
                texts.append(value)
                continue
            row[modality] = value
            media += 1
        said += [" ".join(texts)] if any(text.strip() for text in texts) else []
    _check_media(media, settings, "messages")
    if said:
        row["text"] = join_turns(said, turns)
    if not row:
        raise ApiError(400, "the messages are empty", code="empty_input", param="messages")
    return (await fetch_links([row], settings))[0]


def _check_media(count: int, settings: ServeSettings, param: str) -> None:
    if count > settings.media_items:
        wrong = f"{count} images and sounds; a request takes {settings.media_items}"
        raise ApiError(413, wrong, code="too_many_items", param=param)


def _row(item: InputItem | CohereInput | list[int], param: str) -> Row:
    if isinstance(item, str):
        row: Row = {"text": item}
    elif isinstance(item, list):
        row = {"text": tuple(item)}
    elif isinstance(item, ModalItem):
        row = {"text": item.text} if item.text is not None else {}
        row |= {"image": _media(item.image, f"{param}.image")} if item.image is not None else {}
        row |= {"audio": _media(item.audio, f"{param}.audio")} if item.audio is not None else {}
    else:
        row = _fused(item, param)
    if row.get("text") == "" or not row:
        raise ApiError(400, "the item is empty", code="empty_input", param=param)
    return row


def _fused(item: ContentItem | CohereInput, param: str) -> Row:
    row: Row = {}
    for i, part in enumerate(item.content):
        where = f"{param}.content[{i}]"
        modality, value = _part(part, where)
        if modality in row:
            wrong = f"an item holds one {modality} at most"
            raise ApiError(400, wrong, code="too_many_parts", param=where)
        row[modality] = value
    return row


def _part(part: TextPart | ImagePart | AudioPart, param: str) -> tuple[Modality, Any]:
    if isinstance(part, TextPart):
        return "text", part.text
    if isinstance(part, ImagePart):
        return "image", _media(part.image_url.url, f"{param}.image_url.url")
    return "audio", _media(part.input_audio.data, f"{param}.input_audio.data")


def _media(value: str, param: str) -> bytes | Link:
    """Bytes of base64 or a data: URI; or a URL."""
    if _URL.match(value):
        return Link(value, param)
    found = _DATA_URI.match(value)
    try:
        data = base64.b64decode(value[found.end() :] if found else value, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "this is no base64", code="invalid_base64", param=param) from None
    if not data:
        raise ApiError(400, "the file is empty", code="empty_input", param=param)
    return data


def items_of(value: Any) -> list[Any]:
    """`input` as a list: one item may come alone."""
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return value
    return [value]
