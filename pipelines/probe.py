"""The probe as a task of its own: for a dry run, and where unit workers hold no model."""

import time

import ray
from ray.exceptions import RayError, WorkerCrashedError

from mmbm_core.errors import RunError
from pipelines.progress import say
from workers.probe import Probe, ProbeResult
from workers.resources import WorkerResources
from workers.trouble import user_error, waiting_for

_NOTICE_S = 30.0


def run_probe(probe: Probe, resources: WorkerResources, *, stall_s: float) -> ProbeResult:
    """Run the probe with a worker's share of the cluster.

    Raises:
        UsageError, RunError: what the probe raised, or no worker was free for `stall_s`.
    """
    started = time.monotonic()
    task = _probe.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    number = 0
    while True:
        number += 1
        try:
            job = task.remote(probe.attempt(number))
            while not ray.wait([job], timeout=_NOTICE_S)[0]:
                say(f"still waiting for a worker to try the model. {waiting_for()}")
                if time.monotonic() - started > stall_s:
                    raise RunError(f"no worker could try the model for {stall_s:g} s. {waiting_for()}")
            return ray.get(job)  # type: ignore[no-any-return]
        except WorkerCrashedError:
            say("WARNING: the worker that tried the model on the input's first rows was killed")
        except RayError as error:
            raise user_error(error) from error


@ray.remote(max_retries=0)
def _probe(probe: Probe) -> ProbeResult:
    return probe.run()
