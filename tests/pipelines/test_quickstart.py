"""The quickstart's sheet on made-up vectors; slow: the whole tour on few scenes."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmbm_core.errors import UsageError
from mmbm_core.sample import MODALITIES
from mmbm_core.saved import read_bundle
from pipelines.neighbours import FACTORS, neighbours_across, neighbours_within, write_sheet
from pipelines.quickstart import quickstart
from tests.samples import image_file

NUM_ROWS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Rows in pairs of equal factors, and vectors that say so, in another order."""
    folder = tmp_path_factory.mktemp("made-up")
    rows = [
        {
            "id": f"r{i}", "image": image_file("PNG", i, width=32, height=32), "text": f"caption {i}", "room": "hall",
            **dict.fromkeys(FACTORS.values(), f"kind {i // 2}"),
        }
        for i in range(NUM_ROWS)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    own = np.repeat(np.eye(NUM_ROWS // 2), 2, axis=0) + 0.01 * rng.normal(size=(NUM_ROWS, NUM_ROWS // 2))
    found = [
        {"id": f"r{i}", **{f"{m}_embedding": own[i].astype(np.float32).tolist() for m in MODALITIES}}
        for i in reversed(range(NUM_ROWS))
    ]
    kinds = [("id", pa.string()), *((f"{m}_embedding", pa.list_(pa.float32(), own.shape[1])) for m in MODALITIES)]
    for name, table in {
        "data": pa.Table.from_pylist(rows),
        "vectors": pa.Table.from_pylist(found, pa.schema(kinds)),
    }.items():
        (folder / name).mkdir()
        pq.write_table(table, folder / name / "part-0.parquet")
    return str(folder / "data"), str(folder / "vectors")


def test_near_rows_share_what_they_should(folders: tuple[str, str]) -> None:
    bands, agreement = neighbours_within(*folders)
    assert agreement == {m: (1.0, pytest.approx(1 / (NUM_ROWS - 1))) for m in FACTORS}
    assert len(bands) == len(FACTORS)
    for rows in bands.values():
        for number, (query, nearest, *others) in enumerate(rows):
            assert query.score is None and f"caption {number}" in query.words
            assert f"caption {number ^ 1}" in nearest.words and nearest.score == pytest.approx(1, abs=0.01)
            assert all(other.score < nearest.score for other in others)


def test_words_and_sounds_find_what_is_in_one_space_with_them(folders: tuple[str, str], tmp_path: Path) -> None:
    across = neighbours_across(*folders)
    words, sounds = across.values()
    for number, (query, *found) in enumerate(words):
        assert query.image is None and query.words == f"caption {number}"
        assert found[0].right and found[0].words == f"caption {number}" and not any(cell.right for cell in found[1:])
    assert sounds[0][0].words == "heard: caption 0"
    path = tmp_path / "new" / "sheet.png"
    write_sheet(path, across | neighbours_within(*folders)[0])
    sheet = Image.open(io.BytesIO(path.read_bytes()))
    assert sheet.format == "PNG" and sheet.height > sheet.width


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rows 40: training needs"):
        quickstart(str(tmp_path / "tour"), rows=40)
    assert not (tmp_path / "tour").exists()


@pytest.mark.slow
def test_the_whole_tour(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    told = quickstart(str(tmp_path / "tour"), rows=240)
    assert (told["rows_in"], told["rows_out"], told["rows_quarantined"]) == (240, 240, 0)
    for each in told["retrieval"].values():
        assert each["gallery"] == 80
        assert each["r@10_by_chance"] == 0.125
    assert told["retrieval"]["text>image"]["r@10"] > 0.6
    assert told["retrieval"]["audio>text"]["r@10"] > 0.2
    assert {name: each["by_chance"] for name, each in told["tasks"].items()} == {
        "shape": 0.125, "count": 0.25, "truth": 0.5,
    }  # fmt: skip
    assert all(told["tasks"][name]["accuracy"] > 2 * told["tasks"][name]["by_chance"] for name in ("shape", "count"))
    assert Path(told["sheet"]).is_file() and (tmp_path / "tour" / "report" / "report.html").is_file()
    assert read_bundle(Path(told["bundle"]))["metrics"]
    assert not (tmp_path / "home" / ".cache" / "mmbm").exists()
    assert {path.name for path in (tmp_path / "tour").iterdir()} == {
        "bundle", "cache", "data", "neighbours.png", "report", "shared", "unseen", "vectors",
    }  # fmt: skip
    assert os.listdir(tmp_path / "tour" / "cache")
