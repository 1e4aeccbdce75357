"""An output folder under attack: late writers of dead runs, torn files, ledgers that tell an old tale."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmbm_core.errors import RunError, UsageError
from workers import lock
from workers.lock import output_lock
from workers.output import Entry, LedgerWriter, Output
from workers.storage import open_location

PART = "part-a-000000000000-0123.parquet"
SIDE = {"_quarantine": pa.table({"id": ["bad"]}), "_hashes": pa.table({"hash": [b"0"]})}


def begin(folder: Path, token: str) -> Output:
    storage, path = open_location(str(folder))
    output = Output(storage=storage, folder=path, token=token)
    output.begin()
    return output


def rows(value: int) -> pa.Table:
    return pa.table({"id": [f"r{value}"]})


def entry(**facts: Any) -> Entry:
    return {"part": PART, "rows_in": 1, **facts}


def files(folder: Path) -> dict[str, bytes]:
    """Everything but what is under way."""
    found = [path for path in folder.rglob("*") if path.is_file() and "_staging" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_writers_in_the_middle_of_their_work_lose_it(tmp_path: Path) -> None:
    """Each round a run begins while two workers of the run before it write as fast as they can."""
    ended: list[str] = []

    def work(output: Output, name: str) -> None:
        try:
            while True:
                output.stage(name, b"x")
        except RunError:
            ended.append(output.token)

    output = begin(tmp_path, "run0")
    for number in range(1, 20):
        writers = [threading.Thread(target=work, args=(output, f"w{n}"), daemon=True) for n in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(0.02)
        output = begin(tmp_path, f"run{number}")
        for writer in writers:
            writer.join(10)
        assert ended.count(f"run{number - 1}") == 2
        assert [path.name for path in (tmp_path / "_staging").iterdir()] == [f"run{number}"]
        assert not list(tmp_path.glob("_gone-*"))


def test_a_late_writer_changes_nothing(tmp_path: Path) -> None:
    old = begin(tmp_path, "old")
    old.commit(PART, rows(1), entry(), SIDE)
    new = begin(tmp_path, "new")
    new.commit(PART, rows(2), entry(), {})
    before = files(tmp_path)
    for late in (
        lambda: old.commit(PART, rows(3), entry(), SIDE),
        lambda: old.commit(PART.replace("-a-", "-b-"), rows(3), entry(), SIDE),
        lambda: old.stage("attempts.json", b"{}"),
    ):
        with pytest.raises(RunError, match="another run has taken this OUTPUT over"):
            late()
    assert files(tmp_path) == before
    assert not (tmp_path / "_staging" / "old").exists()
    new.commit(PART, rows(4), entry(), SIDE)  # and the run that is on goes on


def test_a_writer_that_staged_its_files_before_the_change_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = begin(tmp_path, "old")
    old.commit(PART, rows(1), entry(), {})
    stage, staged = Output.stage, []

    def stage_then_lose(self: Output, name: str, data: Any, **options: Any) -> None:
        stage(self, name, data, **options)
        staged.append(name)
        if len(staged) == 3:  # quarantine, hashes, part: all is ready to be moved
            begin(tmp_path, "new")

    monkeypatch.setattr(Output, "stage", stage_then_lose)
    before = files(tmp_path)
    with pytest.raises(RunError):
        old.commit(PART, rows(2), entry(), SIDE)
    assert files(tmp_path) == before


def test_the_same_unit_again_replaces_all_it_left(tmp_path: Path) -> None:
    output = begin(tmp_path, "one")
    output.commit(PART, rows(1), entry(rows_in=1), SIDE)
    output.commit(PART, rows(2), entry(rows_in=2), {"_hashes": SIDE["_hashes"]})
    assert set(files(tmp_path)) == {PART, f"_hashes/{PART}"}
    assert output.entries() == {PART: entry(rows_in=2)}


def test_a_failed_write_leaves_no_half_file(tmp_path: Path) -> None:
    output = begin(tmp_path, "one")
    command = f"""
import resource
from tests.workers.test_output import *
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage, path = open_location({str(tmp_path)!r})
try:
    Output(storage=storage, folder=path, token="one").commit(PART, rows(1), entry(note="x" * 5000), {{}})
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "File too large\n", done.stderr
    assert files(tmp_path) == {}
    assert list(output.storage.list(output.staging())) == []


@pytest.mark.parametrize("content", [b"", b"no Parquet", b"PAR1" + b"x" * 40 + (20).to_bytes(4, "little") + b"PAR1"])
def test_a_part_of_another_program_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    output = begin(tmp_path, "one")
    (tmp_path / "part-0.parquet").write_bytes(content)
    for look in (output.refuse_foreign, output.entries):
        with pytest.raises(UsageError, match="holds part-0.parquet, which mmbm did not write"):
            look()


def test_torn_writes_of_a_killed_driver_are_cleared(tmp_path: Path) -> None:
    begin(tmp_path, "one").commit(PART, rows(1), entry(), {})
    (tmp_path / "_ledger" / ".1-one.jsonl.0123.tmp").write_text('{"part": "part-')
    (tmp_path / "._run.json.0123.tmp").write_text("{")
    assert begin(tmp_path, "two").entries() == {PART: entry()}
    assert set(files(tmp_path)) == {PART}


def test_the_later_of_two_ledger_entries_holds(tmp_path: Path) -> None:
    for number, token in enumerate(["z", "a", "m"]):  # tokens are random: their order says nothing
        output = begin(tmp_path, token)
        output.commit(PART, rows(number), entry(number=number), {})
        ledger = LedgerWriter(output)
        ledger.add(entry(number=number))
        ledger.flush()
        assert output.entries()[PART]["number"] == number


def test_the_lock_ends_with_its_owner(tmp_path: Path) -> None:
    storage, path = open_location(str(tmp_path))
    command = f"""
import time
from workers.lock import *
from workers.storage import open_location
storage, path = open_location({path!r})
with output_lock(storage, path, say=print):
    print("held", flush=True)
    time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {owner.pid} on "), output_lock(storage, path, say=print):
            pass
    finally:
        owner.kill()
        owner.wait()
    with output_lock(storage, path, say=print) as token:
        assert json.loads((tmp_path / "_lock").read_text())["token"] == token


class TestHeartbeat:
    """The lock of object stores, tried on a folder."""

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seconds in {"HEARTBEAT_S": 0.1, "STALE_S": 0.6, "SETTLE_S": 0.02}.items():
            monkeypatch.setattr(lock, name, seconds)
        self.said: list[str] = []

    def hold(self, folder: Path, token: str) -> Any:
        storage, path = open_location(str(folder))
        return lock._heartbeat(storage, f"{path}/_lock", token, self.said.append)

    def owner(self, folder: Path) -> str | None:
        path = folder / "_lock"
        return json.loads(path.read_text())["token"] if path.exists() else None

    def test_one_at_a_time(self, tmp_path: Path) -> None:
        with self.hold(tmp_path, "one"):
            with pytest.raises(RunError, match=f"process {os.getpid()} on"), self.hold(tmp_path, "two"):
                pass
            assert self.owner(tmp_path) == "one"
        assert self.owner(tmp_path) is None

    def test_a_dead_owner_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "_lock").write_text('{"token": "dead", "host": "h", "pid": 1}')
        with self.hold(tmp_path, "two"):
            assert self.owner(tmp_path) == "two"
        assert len(self.said) == 1 and "0.6 s" in self.said[0]

    def test_an_owner_that_slept_too_long_stays_out(self, tmp_path: Path) -> None:
        storage, path = open_location(str(tmp_path))
        with self.hold(tmp_path, "one"):
            storage.write_bytes(f"{path}/_lock", b'{"token": "two"}')  # as a run that found it stale does
            time.sleep(0.3)
            assert self.owner(tmp_path) == "two"
            assert not lock.owns_lock(storage, path, "one")
        assert self.owner(tmp_path) == "two"

    def test_of_two_that_begin_at_once_one_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        storage, path = open_location(str(tmp_path))
        settle = time.sleep

        def other_writes(seconds: float) -> None:
            storage.write_bytes(f"{path}/_lock", b'{"token": "two", "host": "h", "pid": 2}')
            settle(seconds)

        monkeypatch.setattr(lock.time, "sleep", other_writes)
        with pytest.raises(RunError, match="process 2 on h"), self.hold(tmp_path, "one"):
            pass
