"""The page of what a gate left out: reasons, the rows beside what speaks against them, and nothing that is not ours."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmbm_core.augment.recipe import AugmentRecipe
from pipelines import augment as augment_module
from pipelines import embed as embed_module
from pipelines.augment import AugmentRequest
from pipelines.dropped import PAGE
from pipelines.request import RowsSettings
from tests.pipelines.conftest import EmbeddingHere, Here
from tests.pipelines.test_report import Page
from tests.samples import audio_file, image_file, tone
from workers.guard import RowGuard
from workers.readers.discover import discover
from workers.storage import open_location

pytest.importorskip("jinja2")

WORDS = {"disc": "a red disc lies left of a disc", "ring": "three green rings and a ring"}
HOSTILE = "<script>alert(1)</script>"
Augment = Callable[..., dict[str, Any]]


@pytest.fixture
def augment(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Augment:
    """`augment(gate, INPUT, OUTPUT, key=value)`: the figures; nothing but the gate changes anything."""
    monkeypatch.setattr(augment_module, "Stream", Here)
    monkeypatch.setattr(embed_module, "EmbeddingStream", EmbeddingHere)

    def run(gate: dict[str, Any] | None, source: Path, output: Path | str, **given: Any) -> dict[str, Any]:
        recipe = {"copies": 0, "gate": gate} if gate else {"text": {"typos": 0.2}}
        settings = {name: given.pop(name) for name in list(given) if name in RowsSettings.model_fields}
        return augment_module.augment(AugmentRequest(
            inputs=[str(source)], output=str(output), recipe=AugmentRecipe.model_validate(recipe),
            settings=RowsSettings(**settings), **given,
        ))  # fmt: skip

    return run


def labelled(count: int = 120) -> list[dict[str, Any]]:
    """Rows of two classes, of which the last but one is there already and the last has the other class's label."""
    rows = [{"id": f"r{n}", "text": f"{WORDS[label]} {n}", "label": label}
            for n in range(count) for label in [("disc", "ring")[n % 2]]]  # fmt: skip
    return [
        *rows,
        {**rows[3], "id": f"again{HOSTILE}"},
        {"id": "wrong", "text": f"{WORDS['disc']} 900", "label": "ring"},
    ]


def test_rows_stand_beside_what_speaks_against_them(
    augment: Augment, write: Any, text_model: str, tmp_path: Path
) -> None:
    rows = labelled()
    rows[3]["text"] = rows[-2]["text"] = f"{WORDS['ring']} 3 {HOSTILE}"
    source, output = write("a.jsonl", rows), tmp_path / "out"
    gate = {"model": text_model, "duplicates": 0.999999, "label": "label"}
    figures = augment(gate, source, output, unit_rows=50)
    assert figures["dropped"] == str(output / PAGE)
    content = (output / PAGE).read_text()
    page = Page(content)
    assert HOSTILE not in content and "http" not in content.split("<body>")[1]
    lines = [pq.ParquetFile(part).read() for part in (output / "_quarantine").glob("*.parquet")]
    reasons = {line["id"]: line["error"] for line in pa.concat_tables(lines).to_pylist()}
    assert reasons[f"again{HOSTILE}"] == "nearly equal to r3"
    doubtful = sum("doubtful" in why for why in reasons.values())
    assert f"What the gate left out: {len(reasons)} of 122 rows" in page.text
    assert f"Near-duplicates {len(reasons) - doubtful} " in page.text and f"Doubtful labels {doubtful} " in page.text
    text = rows[3]["text"]
    assert f"again{HOSTILE} text {text} row r3 text {text}" in page.text
    assert f"wrong text {WORDS['disc']} 900 labelled ring looks like disc" in page.text
    assert discover([str(output)]).format == "parquet"  # the page is no data


def test_a_run_that_goes_on_writes_it_anew_and_one_without_a_gate_has_none(
    augment: Augment, write: Any, text_model: str, tmp_path: Path
) -> None:
    source, output = write("a.jsonl", labelled()), tmp_path / "out"
    gate = {"model": text_model, "duplicates": 0.999999}
    augment(gate, source, output)
    first = (output / PAGE).read_bytes()
    (output / PAGE).write_text("of an earlier run")
    again = augment(gate, source, output)
    assert again["rows_reused"] == again["rows_in"] and (output / PAGE).read_bytes() == first
    assert "dropped" not in augment(None, source, output) and not (output / PAGE).exists()
    none = augment({"model": text_model, "duplicates": 1.0}, write("b.jsonl", labelled()[:4]), tmp_path / "none")
    assert "What the gate left out: 0 of 4 rows" in Path(none["dropped"]).read_text()


def test_pictures_and_sounds_are_fetched_for_the_rows_that_are_shown_alone(
    augment: Augment, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [
        {"image_uri": f"{n}.png", "audio": audio_file(wave=tone(seconds=0.2 + n / 100)), "text": f"row {n}"}
        for n in range(40)
    ]
    for n in range(40):
        (folder / f"{n}.png").write_bytes(image_file("PNG", 0 if n == 31 else n, width=40, height=20))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=8)
    fetched: list[Any] = []
    load = RowGuard._load
    gate = {"model": "efficientnet-lite0", "duplicates": 0.999999}
    given: dict[str, Any] = {"unit_rows": 8, "format": "parquet"}
    augment(gate, folder, tmp_path / "out", **given)
    (tmp_path / "out" / PAGE).unlink()
    monkeypatch.setattr(RowGuard, "_load", lambda self, value: (fetched.append(value), load(self, value))[1])
    augment(gate, folder, tmp_path / "out", **given)  # nothing is encoded anew
    assert sorted(map(str, fetched)) == ["0.png", "31.png"]
    content = (tmp_path / "out" / PAGE).read_text()
    page = Page(content)
    assert "a.parquet#31 text row 31" in page.text and "row a.parquet#0 text row 0" in page.text
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', content)
    assert len(pictures) == 2 and content.count("data:audio/wav") == 2
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (40, 20)
    (folder / "31.png").write_bytes(b"no picture any more")
    augment(gate, folder, tmp_path / "out", **given)
    assert "image_uri can't be shown here" in Page((tmp_path / "out" / PAGE).read_text()).text


def test_many_rows_are_shown_at_even_distances_by_the_elements_that_were_dropped(
    augment: Augment, write: Any, text_model: str, tmp_path: Path
) -> None:
    rows = [{"id": f"r{n}", "texts": [f"said {n % 5} times", f"said {(n + 1) % 5} times"]} for n in range(100)]
    gate = {"model": text_model, "duplicates": 0.999999}
    augment(gate, write("a.parquet", rows), tmp_path / "out", explode="texts")
    page = Page((tmp_path / "out" / PAGE).read_text())
    shown = re.findall(r"r(\d+)#\d texts said (\d) times row r\d#\d texts said (\d) times", page.text)
    assert len(shown) == 60 and all(own == earlier for _, own, earlier in shown)
    assert int(shown[0][0]) < 5 and int(shown[-1][0]) > 95


def test_a_url_as_output(augment: Augment, write: Any, text_model: str, s3: str) -> None:
    output = f"{s3}/gated"
    figures = augment({"model": text_model, "duplicates": 0.999999}, write("a.jsonl", labelled()), output)
    storage, path = open_location(f"{output}/{PAGE}")
    assert figures["dropped"] == f"{output}/{PAGE}" and b"nobody" not in storage.read_bytes(path)
    assert "row r3" in Page(storage.read_bytes(path).decode()).text
    assert "dropped" not in augment(None, write("a.jsonl", labelled()), output) and not storage.exists(path)


def test_without_what_pages_need_the_rows_are_sifted_all_the_same(
    augment: Augment, write: Any, text_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    figures = augment({"model": text_model, "duplicates": 0.999999}, write("a.jsonl", labelled()), tmp_path / "out")
    assert "dropped" not in figures and figures["rows_quarantined"]
    assert "dropped.html is left out: pages need jinja2" in capsys.readouterr().err
