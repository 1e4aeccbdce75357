"""Many small jobs on the cluster, a bounded number under way, with a watchdog."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import ray

from mmbm_core.errors import RunError
from workers.resources import living_nodes, plan_workers
from workers.trouble import unwrap, waiting_for

STALL_S = 900.0


def in_tasks(
    function: Any, calls: Iterable[tuple[Any, ...]], *, at_once: int = 64, stall_s: float = STALL_S
) -> Iterator[Any]:
    """Results of a remote function, in the order of `calls`.

    Raises:
        UsageError, RunError: of a call; nothing ended for `stall_s` seconds.
    """
    left = iter(calls)
    pending = [function.remote(*args) for args in itertools.islice(left, at_once)]
    while pending:
        yield _get(pending.pop(0), stall_s)
        pending += [function.remote(*args) for args in itertools.islice(left, 1)]


class Crew:
    """Actors of one kind, each with a worker's share of the cluster; they end with the `with` block.

    Args:
        kind: an actor class whose constructor takes `args`, `device` and `threads`.
        most: actors at most.
    """

    def __init__(self, kind: Any, *args: Any, most: int) -> None:
        resources = plan_workers(living_nodes())
        placed = kind.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
        self._actors = [
            placed.remote(*args, device=resources.device, threads=resources.threads)
            for _ in range(min(resources.workers, most))
        ]

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def do(
        self, method: str, calls: Iterable[tuple[Any, ...]], *, stall_s: float = STALL_S
    ) -> Iterator[tuple[int, Any]]:
        """Number and result of each call, as they end; every actor that there is room for has two at a time.

        Raises:
            UsageError, RunError: as `in_tasks`.
        """
        left = deque(enumerate(calls))
        running: dict[Any, tuple[int, Any]] = {}
        starting = {actor.__ray_ready__.remote(): actor for actor in self._actors}

        def start(actor: Any) -> None:
            if left:
                number, args = left.popleft()
                running[getattr(actor, method).remote(*args)] = number, actor

        while running or left:
            done, _ = ray.wait([*running, *starting], timeout=stall_s)
            if not done:
                raise _stalled(stall_s)
            result = _get(done[0], stall_s)
            if done[0] in starting:
                actor = starting.pop(done[0])
                start(actor)
                start(actor)
            else:
                number, actor = running.pop(done[0])
                start(actor)
                yield number, result


def _get(reference: Any, stall_s: float) -> Any:
    try:
        return ray.get(reference, timeout=stall_s)
    except ray.exceptions.GetTimeoutError:
        raise _stalled(stall_s) from None
    except ray.exceptions.RayError as error:
        raise unwrap(error) from error


def _stalled(stall_s: float) -> RunError:
    return RunError(f"nothing has happened for {stall_s:g} s. {waiting_for()}")
