"""Runs of the real `mmbm embed` in processes of their own, to be killed, and what is left of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 150.0
_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Process(NamedTuple):
    parent: int
    title: str


def processes() -> dict[int, Process]:
    """All that run on this machine, by process id; zombies left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if state != "Z":
                    found[int(folder.name)] = Process(int(parent), title)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def family(root: int) -> dict[int, Process]:
    """A process and all that it started, and those started."""
    everyone = processes()
    members = {root}
    while grown := {pid for pid, p in everyone.items() if p.parent in members} - members:
        members |= grown
    return {pid: everyone[pid] for pid in members if pid in everyone}


def wait_for(condition: Callable[[], Any], *, timeout_s: float = WATCHDOG_S, every_s: float = 0.02) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"nothing happened within {timeout_s} s"
        time.sleep(every_s)
    return answer


class Cli:
    """One `mmbm` command under way.

    Args:
        address: the cluster to join; "local" starts one of its own.
    """

    def __init__(self, *args: Any, address: str = "local", **env: str) -> None:
        self._stderr = ""
        self.scratch = Path(tempfile.mkdtemp(prefix="mm-"))  # short: sockets are made in it
        env = {**_RAY, "RAY_TMPDIR": str(self.scratch), "TMPDIR": str(self.scratch), "RAY_ADDRESS": address, **env}
        command = [sys.executable, "-m", "deploy.cli.main", *map(str, args)]
        with open(self.scratch / "out", "wb") as out, open(self.scratch / "err", "wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **env}, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self._stderr or (self.scratch / "err").read_text()

    def member(self, title: str) -> int | None:
        """One process of this command whose title holds `title`."""
        return next((pid for pid, p in family(self.pid).items() if title in p.title and pid != self.pid), None)

    def wait(self, timeout_s: float = WATCHDOG_S) -> int:
        """The exit status.

        Raises:
            AssertionError: it hangs.
        """
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.stderr[-3000:]}\n{self._log()}") from None
        finally:
            self.close()

    def result(self, timeout_s: float = WATCHDOG_S) -> dict[str, Any]:
        """The JSON line of a command that ends well; it is all there is on standard output."""
        try:
            status = self.process.wait(timeout_s)
            out = (self.scratch / "out").read_text()
            assert status == 0, f"exit status {status}: {self.stderr[-3000:]}\n{self._log()}"
            assert out.count("\n") == 1, repr(out)
            assert "Traceback" not in self.stderr
            figures: dict[str, Any] = json.loads(out)
            return figures
        finally:
            self.close()

    def _log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.scratch.glob("*.log"))

    def close(self) -> None:
        """Kill what is left."""
        for pid in family(self.pid):
            kill(pid)
        self.process.wait()
        self._stderr = self.stderr
        shutil.rmtree(self.scratch, ignore_errors=True)


def kill(pid: int | None, number: int = signal.SIGKILL) -> None:
    """Send a signal; gone already is fine."""
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def cluster(num_cpus: int, **options: Any) -> Iterator[str]:
    """A running Ray cluster of one node; gives its address."""
    scratch = tempfile.mkdtemp(prefix="mm-")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", f"--num-cpus={num_cpus}"]
    before = set(processes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # jobs find `mmbm` there
    env = {**os.environ, **_RAY, "RAY_TMPDIR": scratch, "PATH": path}
    command = [*ray, "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={scratch}", *flags]
    started = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield (Path(scratch) / "ray_current_cluster").read_text()
    finally:
        for pid in [pid for pid, p in processes().items() if pid not in before and scratch in p.title]:
            for member in family(pid):
                kill(member)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def second_node(address: str, *, hidden: Path | None = None) -> Iterator[None]:
    """One more CPU of this machine joins a cluster, as a node of its own.

    Args:
        hidden: a folder that this node has on another disk than everyone else.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1", "--block"]
    if hidden:
        command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden), *command]
    node = subprocess.Popen(
        command, env={**os.environ, **_RAY}, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    count = "import ray, sys; ray.init(sys.argv[1]); print(sum(node['Alive'] for node in ray.nodes()))"
    ask = [sys.executable, "-c", count, address]
    try:
        wait_for(lambda: subprocess.run(ask, env={**os.environ, **_RAY}, capture_output=True).stdout == b"2\n")
        yield
    finally:
        for pid in family(node.pid):
            kill(pid)
        node.wait()


def parts(output: Path) -> dict[str, tuple[int, int]]:
    """Committed parts: name -> (inode, modification time)."""
    found = {}
    for path in output.glob("part-*.parquet"):
        stat = path.stat()
        found[path.name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def table(output: Path) -> pa.Table:
    """All rows, sorted by id."""
    read = [pq.ParquetFile(path).read() for path in sorted(output.glob("part-*.parquet"))]
    return pa.concat_tables(read).sort_by("id")


def check_tidy(output: Path, figures: dict[str, Any]) -> None:
    """The books balance, each side file has its part, nothing is left of what was under way."""
    names = set(parts(output))
    assert figures["rows_in"] == figures["rows_out"] + figures["rows_quarantined"]
    assert figures["units"] == len(names)
    assert figures["rows_written"] == sum(pq.read_metadata(output / name).num_rows for name in names)
    for side in ("_quarantine", "_dropped", "_hashes"):
        assert {path.name for path in (output / side).glob("*")} <= names  # an object store has no empty folders
    assert not (output / "_staging").exists()
    assert not [path for path in output.rglob("*") if path.name.endswith(".tmp")]
    ledger = [json.loads(line) for path in (output / "_ledger").iterdir() for line in path.read_text().splitlines()]
    assert {entry["part"] for entry in ledger} == names
    assert len(ledger) == len(names)
    assert json.loads((output / "_run.json").read_text())["state"] == "complete"
