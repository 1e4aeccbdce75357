"""Which rows there are, and on which side of the split they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from pipelines.dataset import UNIT, Wanted, index_set, open_set
from pipelines.recipe import DataSettings
from tests.samples import image_file
from tests.training import write_rows
from workers.storage import open_location
from workers.training.rows import column_values, index_unit, read_unit, side_of

LABELLED = Wanted(columns=frozenset({("text", "text")}), targets=frozenset({"label"}), labels=frozenset({"label"}))


def opened(path: Path, wanted: Wanted = LABELLED, *, seed: int = 0, **settings: Any) -> tuple[Any, list[Any]]:
    """The spec and the units of one input."""
    ((inputs, spec),) = open_set([str(path)], wanted, DataSettings(**settings), seed=seed)
    units = [(s, u) for s, source in inputs.sources() for u in inputs.reader.units(s, source, UNIT)]
    return spec, units


def sides(spec: Any, units: list[Any]) -> tuple[list[str], list[str]]:
    """Ids to train on, and to validate on."""
    train, val = [], []
    for storage, unit in units:
        found = index_unit(spec, storage, unit, None)
        ids = read_unit(spec, storage, unit)["id"].to_pylist()
        train += [ids[i] for i in np.frombuffer(found["train"], np.int32)]
        val += [ids[i] for i in np.frombuffer(found["val"], np.int32)]
    return train, val


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("train.parquet", "train"), ("a/b/train-00001.jsonl", "train"), ("dev/x.tar", "val"), ("Validation.csv", "val"),
        ("data/test_2016.jsonl", "test"), ("all.parquet", None), ("strain.csv", None), ("train/val.csv", "val"),
    ],
)  # fmt: skip
def test_what_names_say(name: str, side: str | None) -> None:
    assert side_of(name) == side


def test_the_split_is_a_function_of_seed_and_id(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "text": "t", "label": n % 3} for n in range(2000)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    train, val = sides(*opened(data, val_fraction=0.2))
    assert sorted(train + val) == sorted(row["id"] for row in rows) and not set(train) & set(val)
    assert 340 < len(val) < 460
    write_rows(data, [*rows[::-1], {"id": "new", "text": "t", "label": 1}])
    assert set(sides(*opened(data, val_fraction=0.2))[1]) - {"new"} == set(val), "other rows leave a row where it is"
    assert set(sides(*opened(data, val_fraction=0.2, seed=1))[1]) != set(val)


def test_groups_stay_together(tmp_path: Path) -> None:
    names = ["theo", "lucas", "anna", "mia", "noah", "emma"]
    rows = [{"id": f"{n}_{names[n % 6]}_{n}.wav", "text": "t", "label": 1} for n in range(120)]
    data = write_rows(tmp_path / "a.jsonl", [*rows, {"id": "odd one", "text": "t", "label": 1}])
    group = r"_([a-z]+)_\d+\.wav$"
    train, val = sides(*opened(data, group=group, val_groups=("lucas", "mia")))
    assert {id.split("_")[1] for id in val if "_" in id} == {"lucas", "mia"} and len([v for v in val if "_" in v]) == 40
    assert not any("lucas" in id or "mia" in id for id in train)
    train, val = sides(*opened(data, group=group, val_fraction=0.4))
    said = [{id.split("_")[1] for id in ids if "_" in id} for ids in (train, val)]
    assert not said[0] & said[1] and said[0] | said[1] == set(names)


def test_elements_of_a_row_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "captions": [f"c{n}.{k}" for k in range(5)], "label": n} for n in range(100)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    wanted = Wanted(columns=frozenset({("text", "captions")}), targets=frozenset(), labels=frozenset())
    spec, units = opened(data, wanted, explode="captions", val_fraction=0.3)
    train, val = sides(spec, units)
    assert len(train) + len(val) == 500
    assert not {id.split("#")[0] for id in train} & {id.split("#")[0] for id in val}
    table = read_unit(spec, *units[0])
    assert table["text:captions"].to_pylist()[:2] == [["c0.0"], ["c0.1"]]
    assert table["id"].to_pylist()[:2] == ["p0#0", "p0#1"]


def test_copies_of_augment_are_on_the_side_of_their_source_and_never_validated_on(tmp_path: Path) -> None:
    rows = [
        {"id": f"r{n}" + (f"~{k}" if k else ""), "text": "t", "label": 1, "source_id": f"r{n}",
         "augmentation": "f00" if k else None, "augmentation_seed": 0 if k else None}
        for n in range(60) for k in range(3)
    ]  # fmt: skip
    train, val = sides(*opened(write_rows(tmp_path / "a.jsonl", rows), val_fraction=0.3))
    sources = {id.split("~")[0] for id in train}
    assert 8 < len(val) < 30 and not any("~" in id for id in val) and not sources & set(val)
    assert len(train) == 3 * len(sources) and len(sources) + len(val) == 60


def test_a_copy_of_a_row_that_is_validated_on_is_not_trained_on(tmp_path: Path, ray_cluster: None) -> None:
    train = [{"id": f"r{n}~1", "text": "t", "label": n % 2, "source_id": f"r{n}", "augmentation": "f00"}
             for n in range(8)]  # fmt: skip
    val = [{"id": f"r{n}", "text": "t", "label": n % 2} for n in range(7, 12)]
    write_rows(tmp_path / "train.jsonl", train)
    write_rows(tmp_path / "val.jsonl", val)
    settings = DataSettings()
    found = open_set([str(tmp_path)], LABELLED, settings, seed=0)
    storage, _ = open_location(str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="1 rows to validate on are sources of copies to train on, such as 'r7'"):
        index_set(found, settings, storage=storage)
    write_rows(tmp_path / "val.jsonl", val[1:])
    assert index_set(found, settings, storage=storage).feed.num_val == 4


@pytest.mark.parametrize("has_id", [True, False])
def test_dialogues_become_contexts_and_responses(tmp_path: Path, has_id: bool) -> None:
    dialogues = [["a", "b", "c", "d"], ["only one"], None, ["x", "", "y"]]
    rows = [({"id": f"d{n}"} if has_id else {}) | {"turns": turns} for n, turns in enumerate(dialogues)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    wanted = Wanted(
        columns=frozenset({("text", "turn.context")}), targets=frozenset({"turn.response"}), labels=frozenset()
    )
    spec, units = opened(data, wanted, turns={"column": "turns", "context": 2})
    table = read_unit(spec, *units[0])
    context = [cell[0] for cell in table["text:turn.context"].to_pylist() if cell]
    responses = [r for r in column_values(table, "turn.response") if r is not None]
    assert context == ["a", "a\nb", "b\nc", "x"] and responses == ["b", "c", "d", "y"]
    ids = table["id"].to_pylist()
    assert [id.rsplit("#", 1)[1] for id in ids[:3]] == ["0", "1", "2"] and len(set(ids)) == len(ids)
    if has_id:
        assert ids[:3] == ["d0#0", "d0#1", "d0#2"]
    found = index_unit(spec, *units[0], "train")
    assert len(np.frombuffer(found["train"], np.int32)) == table.num_rows and not found["bad"]


def test_labels_are_counted_on_the_training_side_alone(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "text": "t", "label": [None, 1, 1.5, "x"][n % 4]} for n in range(40)]
    rows = [row | {"label": None if row["label"] is None else str(row["label"])} for row in rows]
    data = write_rows(tmp_path / "a.jsonl", rows)
    spec, ((storage, unit),) = opened(data)
    for side, expected in (("train", {"1": 10, "1.5": 10, "x": 10}), ("val", {}), ("test", {})):
        found = index_unit(spec, storage, unit, side)  # type: ignore[arg-type]
        assert json.loads(found["labels"])["label"] == expected
        sizes = [len(np.frombuffer(found[s], np.int32)) for s in ("train", "val")]
        assert sizes == {"train": [40, 0], "val": [0, 40], "test": [0, 0]}[side]


def test_bad_rows_are_counted_and_the_numbers_of_the_others_hold(tmp_path: Path) -> None:
    """Row numbers are those of `read_unit`, whatever columns were read to find them."""
    rows = [{"id": f"r{n}", "text": f"t{n}", "label": str(n)} for n in range(20)]
    data = write_rows(tmp_path / "a.jsonl", rows)
    lines = data.read_text().splitlines()
    lines[4], lines[9] = "{", lines[8]
    data.write_text("\n".join(lines) + "\n")
    spec, ((storage, unit),) = opened(data)
    found = index_unit(spec, storage, unit, "train")
    assert found["bad"] == 2 and "a.jsonl" in found["error"]
    table = read_unit(spec, storage, unit)
    assert len(np.frombuffer(found["train"], np.int32)) == table.num_rows == 18
    assert [f"t{id[1:]}" for id in table["id"].to_pylist()] == [cell[0] for cell in table["text:text"].to_pylist()]


def test_a_cell_tells_missing_from_unusable(tmp_path: Path) -> None:
    wanted = Wanted(columns=frozenset({("image", "image")}), targets=frozenset(), labels=frozenset())
    (tmp_path / "p.png").write_bytes(image_file("PNG"))
    rows = [{"id": "a", "image": str(tmp_path / "p.png")}, {"id": "b", "image": None}, {"id": "c", "image": "gone.png"}]
    data = write_rows(tmp_path / "a.jsonl", rows)
    spec, units = opened(data, wanted)
    assert spec.encodings == (Encoding(column="image", modality="image", output="image:image"),)
    cells = read_unit(spec, *units[0])["image:image"].to_pylist()
    assert cells[1] is None and cells[2] == []
