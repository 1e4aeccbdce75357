"""What becomes of rows that can't be used: quarantined with the reason, never lost, never in another row's way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbm_core.errors import RunError
from tests.samples import all_files, audio_file, fuzzed, image_file

MIXED = "efficientnet-lite0,mfcc"


def test_uris_are_fetched_below_the_input_and_nowhere_else(
    embed: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "outside.png").write_bytes(image_file())
    path = write("a.jsonl", [
        {"id": "relative", "image_uri": "media/x.png", "audio_uri": "media/x.wav"},
        {"id": "absolute", "image_uri": str(tmp_path / "in/media/x.png")},
        {"id": "late", "image_uri": "media/late.png"},
        {"id": "outside", "image_uri": "../outside.png"},
        {"id": "web", "image_uri": "https://192.0.2.1/x.png"},
        {"id": "scheme", "image_uri": "gopher://x/y"},
        {"id": "both", "image_uri": "media/none.png", "audio_uri": "media/none.wav"},
        {"id": "none", "image_uri": None, "audio_uri": ""},
    ])  # fmt: skip
    media = path.parent / "media"
    media.mkdir()
    (media / "x.png").write_bytes(image_file())
    (media / "x.wav").write_bytes(audio_file())
    done = embed(path, model=MIXED)
    assert set(done.rows) == {"relative", "absolute"}
    assert done.rows["relative"]["modalities"] == ["image", "audio"]
    assert done.rows["relative"]["image_embedding"] == done.rows["absolute"]["image_embedding"]
    assert done.rows["absolute"]["image_uri"].endswith("x.png")
    lines = done.quarantine
    assert lines["late"]["stage"] == "fetch" and "No such file" in lines["late"]["error"]
    assert "outside the input folder" in lines["outside"]["error"]
    assert "--allow-scheme https" in lines["web"]["error"] and "can't be fetched" in lines["scheme"]["error"]
    assert lines["both"]["modality"] == "image,audio" and lines["both"]["error"].startswith("image: ")
    assert lines["none"]["stage"] == "row"

    (media / "late.png").write_bytes(image_file(seed=1))
    assert embed(path, model=MIXED).figures["rows_reused"] == 8  # nothing changed that a run looks at
    again = embed(path, model=MIXED, retry_errors=True)
    assert set(again.rows) == {"relative", "absolute", "late"}
    assert again.rows["relative"] == done.rows["relative"] and "late" not in again.quarantine


def test_hugging_face_structs_hold_bytes_or_a_path(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.parquet", [
        {"id": "bytes", "image": {"bytes": image_file(), "path": "gone.png"}},
        {"id": "path", "image": {"bytes": None, "path": "x.png"}},
        {"id": "gone", "image": {"bytes": None, "path": "gone.png"}},
        {"id": "none", "image": {"bytes": None, "path": None}},
        {"id": "null", "image": None},
    ])  # fmt: skip
    (path.parent / "x.png").write_bytes(image_file())
    done = embed(path, model="efficientnet-lite0")
    assert done.rows["bytes"]["image_embedding"] == done.rows["path"]["image_embedding"]
    assert set(done.rows) == {"bytes", "path"}
    assert [done.quarantine[id]["stage"] for id in ("gone", "none", "null")] == ["fetch", "row", "row"]


@pytest.fixture(scope="module")
def bad_rows() -> dict[str, dict[str, Any]]:
    """One row for each way to be bad, and good ones between them."""
    image, audio = image_file("JPEG"), audio_file("FLAC")
    mp4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(3000)
    rows: dict[str, dict[str, Any]] = {
        "good": {"text": "a red disc", "image": image, "audio": audio},
        "image zero": {"image": b""},
        "image video": {"image": mp4},
        "image sound": {"image": audio},
        "image text": {"image": b"not a picture"},
        "audio zero": {"audio": b""},
        "audio video": {"audio": mp4},
        "audio image": {"audio": image},
        "audio long": {"audio": audio_file("FLAC", np.zeros(21 * 8000, np.int16), rate_hz=8000)},
        "image bomb": {"image": image_file("PNG", width=1100, height=1000)},
        "text long": {"text": "x" * 1001},
        "text 10 MB": {"text": "many words " * 1_000_000},
        "none": {},
        "ok unicode": {"text": "nul \0 \u202eright to left\u202c 👩‍👩‍👧‍👦 e" + "\u0301" * 200},
        "ok rtl": {"text": "שלום \u200f عالم"},
    }
    for kind, data in all_files().items():
        for percent in (1, 30, 60, 95):
            column = "audio" if kind in ("WAV", "FLAC", "OGG", "MP3") else "image"
            cut = data[: max(1, len(data) * percent // 100)]
            if not (kind == "MP3" and percent == 95):
                rows[f"{column} cut {kind} {percent}"] = {column: cut}
    return rows


LIMITS = {"max_text_bytes": 1000, "max_image_px": 1_000_000, "max_audio_s": 20}


def test_bad_rows_are_quarantined_and_good_ones_kept(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str, bad_rows: dict[str, dict[str, Any]]
) -> None:
    empty = {"text": None, "image": None, "audio": None}
    path = write("a.parquet", [{"id": id, **empty, **row} for id, row in bad_rows.items()])
    model = f"{text_model},{MIXED}"
    done = embed(path, model=model, **LIMITS)
    good = {id for id in bad_rows if id.startswith(("ok", "good"))}
    assert set(done.rows) == good and set(done.quarantine) == set(bad_rows) - good
    for id, line in done.quarantine.items():
        assert line["modality"] == (None if id == "none" else id.split()[0])
        assert line["error"] and " object at " not in line["error"] and len(line["error"]) < 300
        position = int(line["source"].rsplit("#", 1)[1])
        assert list(bad_rows)[position] == id

    mixed = [{"id": id, **empty, **row, "text": row.get("text", "a red disc")} for id, row in bad_rows.items()]
    done = embed(write("b.parquet", mixed), model=model, output="dropped", on_bad_modality="drop", **LIMITS)
    lost = {"text long", "text 10 MB"}
    assert set(done.rows) == set(bad_rows) - lost and set(done.quarantine) == lost
    assert set(done.dropped) == set(bad_rows) - good - lost - {"none"}
    assert done.figures["modalities_dropped"] == len(done.dropped)
    assert done.rows["image video"]["modalities"] == ["text"]
    assert done.rows["image video"]["image_embedding"] is None
    assert done.dropped["image video"]["modality"] == "image"


def test_a_dropped_modality_is_recorded_again_when_its_source_changes(
    embed: Callable[..., Any], write: Callable[..., Path], text_model: str
) -> None:
    rows = [{"id": f"r{n}", "text": f"text number {n}", "audio": b"bad" if n == 3 else audio_file()} for n in range(6)]
    model = f"{text_model},mfcc"
    first = embed(write("a.parquet", rows), model=model, on_bad_modality="drop")
    rows[0]["text"] = "one star"
    second = embed(write("a.parquet", rows), model=model, on_bad_modality="drop")
    assert second.figures["rows_reused"] == 4 and set(second.dropped) == set(first.dropped) == {"r3"}
    assert second.figures["modalities_dropped"] == 1


def test_fuzzed_media_end_in_the_output_or_in_quarantine(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    files = list(fuzzed(list(all_files().values()), 120, seed=7))
    rows = [{"id": str(n), "image": data, "audio": data} for n, data in enumerate(files)]
    done = embed(write("a.parquet", rows), model=MIXED, on_bad_modality="drop")
    assert set(done.rows) | set(done.quarantine) == {str(n) for n in range(120)}
    vectors = [row[f"{m}_embedding"] for row in done.rows.values() for m in row["modalities"]]
    assert len(vectors) > 10 and all(np.isfinite(vector).all() for vector in vectors)


def test_the_run_fails_where_all_or_too_much_is_bad(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    rows = [{"id": str(n), "audio": b"bad" if n % 2 else audio_file()} for n in range(20)]
    path = write("a.parquet", rows)
    with pytest.raises(RunError, match=r"10 of 20 rows are quarantined, more than --max-error-rate 0.4"):
        embed(path, model="mfcc", max_error_rate=0.4)
    assert embed(path, model="mfcc", max_error_rate=0.5).figures["rows_reused"] == 20
    with pytest.raises(RunError, match="no row was written: 2 rows read, 2 quarantined"):
        embed(write("none/b.parquet", rows[1:4:2]), model="mfcc", output="other")


def test_a_source_that_cannot_be_read_is_one_line(embed: Callable[..., Any], write: Callable[..., Path]) -> None:
    path = write("a.parquet", [{"id": "x", "text": "words"}])
    (path.parent / "b.parquet").write_bytes(b"PAR1 nothing PAR1")
    done = embed(path.parent)
    assert list(done.rows) == ["x"]
    assert done.quarantine["b.parquet"]["stage"] == "open" and done.figures["rows_in"] == 2
