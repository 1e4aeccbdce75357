"""Where unit workers wait for the run to be settled, and one of them tries the model meanwhile.

Starting a process and loading its libraries takes longer than trying a model: so the workers of a run start first, the
first of them to be ready carries out the probe, and the driver settles the run by what it found.
"""

import asyncio
from contextlib import suppress
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from mmbm_core.errors import RunError
from workers.probe import Probe, ProbeResult
from workers.spec import RunSpec, UnitSpec
from workers.trouble import tell


@ray.remote(num_cpus=0)
class Settlement:
    """Holds the probe until a worker claims it, its result until the driver takes it, and the spec for all.

    Args:
        probe: None where unit workers hold no model.
    """

    def __init__(self, probe: Probe | None) -> None:
        self._probe, self._owner, self._tries = probe, "", 0
        self._result: ProbeResult | dict[str, str] | None = None
        self._spec: RunSpec | None = None
        self._reported, self._settled = asyncio.Event(), asyncio.Event()

    async def claim(self, worker: str) -> tuple[Probe | None, bool]:
        """The probe, and whether this worker is to run it: the first to ask, and the same one again after its death.

        No probe where the run is settled: a worker that took the place of a dead one can begin at once.
        """
        if self._settled.is_set():
            return None, False
        self._owner = self._owner or worker
        mine = worker == self._owner and not self._reported.is_set()
        self._tries += mine
        if self._probe is None or not mine:
            return self._probe and self._probe.without_samples(), mine
        try:
            return self._probe.attempt(self._tries), mine
        except RunError as error:
            await self.report(tell(error))
            return None, False

    async def report(self, result: ProbeResult | dict[str, str]) -> None:
        """What the probe found, or what went wrong, as `tell` puts it."""
        self._result = result
        self._reported.set()

    async def result(self) -> tuple[ProbeResult | dict[str, str] | None, int]:
        """What was reported, and how many workers tried; waits for it."""
        await self._reported.wait()
        return self._result, self._tries

    async def settle(self, spec: RunSpec) -> None:
        """Let the workers go on."""
        self._spec = spec
        self._settled.set()

    async def spec(self) -> RunSpec | None:
        """The settled run; waits for it."""
        await self._settled.wait()
        return self._spec


def wait_for_spec(run: UnitSpec | ActorHandle) -> UnitSpec:
    """The run's spec, once it is settled."""
    return run if isinstance(run, UnitSpec) else cast(UnitSpec, ray.get(run.spec.remote()))


def join_run(run: RunSpec | ActorHandle) -> RunSpec:
    """The same for a unit worker, which makes itself useful until there is a spec."""
    if isinstance(run, RunSpec):
        return run
    claim: Any = run.claim.remote(ray.get_runtime_context().get_actor_id())
    probe, mine = cast(tuple[Probe | None, bool], ray.get(claim))
    if probe is not None and mine:
        ray.get(run.report.remote(_try(probe)))
    elif probe is not None:
        with suppress(Exception):  # the one that runs the probe meets it too, and tells
            probe.load()
    return cast(RunSpec, wait_for_spec(run))


def _try(probe: Probe) -> ProbeResult | dict[str, str]:
    try:
        return probe.run()
    except Exception as error:
        return tell(error)
