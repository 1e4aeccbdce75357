"""A contact sheet as PNG: queries and their nearest neighbours, one band a modality."""

import io
import textwrap
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_CELL_W_PX, _PICTURE_PX, _WORDS_PX, _GAP_PX, _HEAD_PX = 224, 176, 62, 10, 40
_INK, _FAINT, _PAPER, _MARK = (20, 24, 31), (96, 104, 118), (255, 255, 255), (231, 236, 246)
_RIGHT = (214, 240, 216)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the dataset as the sheet shows it."""

    image: bytes | None
    """None where only the words are asked for."""
    words: str
    score: float | None = None
    """Cosine to the query; None marks the query itself."""
    right: bool = False
    """Is it the one that the query belongs to?"""


def draw_sheet(bands: dict[str, list[list[Cell]]]) -> bytes:
    """PNG of bands, each a title with rows of cells: the query first, its neighbours after it."""
    columns = max(len(row) for rows in bands.values() for row in rows)
    cell_h = _PICTURE_PX + _WORDS_PX + _GAP_PX
    height = sum(_HEAD_PX + cell_h * len(rows) for rows in bands.values()) + _GAP_PX
    sheet = Image.new("RGB", (columns * (_CELL_W_PX + _GAP_PX) + _GAP_PX, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    y = _GAP_PX
    for title, rows in bands.items():
        pen.text((_GAP_PX, y + 6), title, fill=_INK, font=ImageFont.load_default(20))
        y += _HEAD_PX
        for row in rows:
            for column, cell in enumerate(row):
                _draw_cell(sheet, pen, _GAP_PX + column * (_CELL_W_PX + _GAP_PX), y, cell)
            y += cell_h
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, x: int, y: int, cell: Cell) -> None:
    if cell.score is None or cell.right:
        box = (x, y, x + _CELL_W_PX, y + _PICTURE_PX + _WORDS_PX)
        pen.rectangle(box, fill=_RIGHT if cell.right else _MARK)
    if cell.image is not None:
        picture = Image.open(io.BytesIO(cell.image)).convert("RGB")
        picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
        sheet.paste(picture, (x + 4, y + 4))
    label = "query" if cell.score is None else f"{cell.score:.3f}"
    pen.text((x + _PICTURE_PX + 8, y + 6), label, fill=_FAINT, font=ImageFont.load_default(12))
    words = "\n".join(textwrap.wrap(cell.words, 36)[:4])
    pen.multiline_text((x + 4, y + _PICTURE_PX + 4), words, fill=_INK, font=ImageFont.load_default(12), spacing=2)
