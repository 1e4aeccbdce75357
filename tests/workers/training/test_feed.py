"""Rows in an order that is a function of (seed, epoch, row) alone, dealt out to workers, resumed anywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dataset import Wanted, index_set, open_set
from pipelines.recipe import DataSettings
from tests.training import write_rows
from workers.storage import open_location
from workers.training import feed as feed_module
from workers.training.feed import Feed

WANTED = Wanted(columns=frozenset({("text", "text")}), targets=frozenset({"label"}), labels=frozenset({"label"}))


@pytest.fixture(scope="module")
def feed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """203 training rows in several units, 40 to validate on."""
    folder = tmp_path_factory.mktemp("feed")
    for name, count in (("train-a", 90), ("train-b", 63), ("train-c", 50), ("val", 40)):
        rows = [{"id": f"{name}{n}", "text": f"t{n}", "label": n % 4} for n in range(count)]
        write_rows(folder / f"{name}.jsonl", rows)
    return indexed(folder)


def indexed(folder: Path, wanted: Wanted = WANTED, **settings: Any) -> Feed:
    given = DataSettings(**settings)
    inputs = sorted(str(p) for p in folder.iterdir()) if settings.get("pair") else [str(folder)]
    return index_set(open_set(inputs, wanted, given, seed=0), given, storage=open_location(str(folder))[0]).feed


def order(feed: Feed, *, seed: int = 3, rank: int = 0, world: int = 1, first: int = 0, last: int) -> list[list[str]]:
    """Ids of each step, as the pieces give them: what Ray Data streams in this order."""
    size = 20
    per_epoch = feed.num_train // size
    ids: list[str] = []
    first_epoch, done = divmod(first, per_epoch)
    for epoch in range(first_epoch, -(-last // per_epoch)):
        begin = done * size if epoch == first_epoch else 0
        end = min(per_epoch, last - epoch * per_epoch) * size
        for piece in feed._epoch(epoch, seed, rank, world, begin, end):
            ids += feed.table(piece, "train")["id"].to_pylist()
    return [ids[at : at + size // world] for at in range(0, len(ids), size // world)]


@pytest.fixture(params=["one window", "small windows"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "small windows":
        monkeypatch.setattr(feed_module, "WINDOW_ROWS", 70)
    return str(request.param)


def test_every_row_once_an_epoch(feed: Feed, windows: str) -> None:
    assert (feed.num_train, feed.num_val) == (203, 40)
    num_windows = len(feed.windows("train", np.random.default_rng(0)))
    assert num_windows == 1 if windows == "one window" else num_windows > 1
    steps = order(feed, last=30)
    assert len(steps) == 30 and all(len(step) == 20 for step in steps)
    epochs = [[id for step in steps[e * 10 : e * 10 + 10] for id in step] for e in range(3)]
    assert all(len(set(ids)) == 200 for ids in epochs), "no row twice; the three that fill no batch wait"
    assert len({tuple(ids) for ids in epochs}) == 3
    left = [set(epochs[0]) ^ set(ids) for ids in epochs]
    assert left[1] or left[2], "others wait in another epoch"
    assert order(feed, last=30) == steps and order(feed, seed=4, last=10) != steps[:10]


def test_ranks_share_each_batch(feed: Feed, windows: str) -> None:
    alone = order(feed, last=20)
    for world in (2, 4, 5):
        shares = [order(feed, rank=rank, world=world, last=20) for rank in range(world)]
        for step, batch in enumerate(alone):
            assert [shares[n % world][step][n // world] for n in range(20)] == batch


@pytest.mark.parametrize(("first", "last"), [(0, 25), (1, 25), (7, 25), (10, 25), (19, 20), (13, 17)])
def test_from_any_step_on_the_rest_is_the_same(feed: Feed, windows: str, first: int, last: int) -> None:
    whole = order(feed, last=25)
    assert order(feed, first=first, last=last) == whole[first:last]
    halves = [order(feed, rank=rank, world=2, first=first, last=last) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(step) for step in whole[first:last]]


def test_ray_data_streams_it_in_this_order(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "WINDOW_ROWS", 70)
    expected = order(feed, rank=1, world=2, first=3, last=23)
    tables = feed.train_rows(seed=3, rank=1, world=2, batch_size=20, first_step=3, last_step=23)
    assert [table["id"].to_pylist() for table in tables] == expected
    val = [table["id"].to_pylist() for table in feed.val_rows(rank=0, world=1, batch_size=16)]
    assert [id for ids in val for id in ids] == [f"val{n}" for n in range(40)]
    assert [len(ids) for ids in val] == [16, 16, 8]
    halves = [
        [id for t in feed.val_rows(rank=rank, world=2, batch_size=16) for id in t["id"].to_pylist()] for rank in (0, 1)
    ]
    assert halves == [[f"val{n}" for n in range(rank, 40, 2)] for rank in (0, 1)]


def test_a_few_rows_come_at_once(feed: Feed) -> None:
    table = feed.some_rows(8)
    assert table.num_rows == 8 and all(id.startswith("train") for id in table["id"].to_pylist())
    assert feed.some_rows(1000).num_rows <= 203


def test_of_each_exploded_row_an_epoch_takes_one(ray_cluster: None, tmp_path: Path, windows: str) -> None:
    for name, count in (("train-a", 60), ("train-b", 31), ("val", 10)):
        rows = [{"id": f"{name}{n}", "text": [f"t{i}" for i in range(1 + n % 4)], "label": n} for n in range(count)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    feed, whole = (indexed(tmp_path, explode="text", one_each=one) for one in (True, False))
    assert (feed.num_train, feed.num_val, whole.num_train) == (91, 23, 226)
    steps = order(feed, last=40)
    epochs = [[id for step in steps[e * 4 : e * 4 + 4] for id in step] for e in range(10)]
    for ids in epochs:
        assert len({id.split("#")[0] for id in ids}) == len(ids) == 80, "one of each"
    drawn = {id for ids in epochs for id in ids}
    assert {id.split("#")[1] for id in drawn} == {"0", "1", "2", "3"} and len(drawn) > 150
    halves = [order(feed, rank=rank, world=2, first=3, last=9) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(step) for step in steps[3:9]]


@pytest.fixture(scope="module")
def pairs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """Texts, and sounds of the same label; label 9 has no sound."""
    folder = tmp_path_factory.mktemp("pairs")
    texts = [{"id": f"t{n}", "text": f"t{n}", "label": n % 4 if n % 20 else 9} for n in range(200)]
    sounds = [{"id": f"s{n}", "heard": f"s{n}", "label": str(n % 4)} for n in range(120)]
    write_rows(folder / "a.jsonl", texts)
    write_rows(folder / "b.jsonl", sounds)
    columns = frozenset({("text", "text"), ("text", "heard")})
    wanted = Wanted(columns=columns, targets=frozenset({"label"}), labels=frozenset({"label"}))
    return indexed(folder, wanted, pair="label", val_fraction=0.3)


def met(pairs: Feed, epoch: int, seed: int = 0) -> dict[str, tuple[Any, Any]]:
    """Label and partner of each training row."""
    tables = [pairs.table(piece, "train") for piece in pairs._epoch(epoch, seed, 0, 1, 0, pairs.num_train)]
    rows = pa.concat_tables(tables).to_pylist()
    return {row["id"]: (row["label"], (row["text:heard"] or [None])[0]) for row in rows}


def test_pairs_agree_in_the_label_and_change_by_epoch(pairs: Feed) -> None:
    assert pairs.partner is not None
    first, second, again = met(pairs, 0), met(pairs, 1), met(pairs, 0)
    assert first == again and len(first) == pairs.num_train
    for label, heard in first.values():
        assert (heard is None) == (label == 9)
        assert heard is None or int(heard[1:]) % 4 == label
    changed = sum(first[id][1] != second[id][1] for id in first if first[id][1])
    assert changed > 0.8 * len(first) - 20
    heard = {h for _, h in [*first.values(), *second.values()] if h}
    val = pa.concat_tables([pairs.table(piece, "val") for piece in pairs.val_pieces()])
    val_heard = {cell[0] for cell in val["text:heard"].to_pylist() if cell}
    assert val_heard and not val_heard & heard, "validation rows meet validation rows"
    same = pa.concat_tables([pairs.table(piece, "val") for piece in pairs.val_pieces()])
    assert same.equals(val)
