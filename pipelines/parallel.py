"""Many small jobs on the cluster, a bounded number under way, with a watchdog."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray

from mmbm_core.errors import RunError
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


def in_actors(
    actors: Sequence[Any], method: str, calls: Iterable[tuple[Any, ...]], *, stall_s: float = STALL_S
) -> Iterator[tuple[int, Any]]:
    """Number and result of each call, as they end; every actor has two calls at a time.

    Raises:
        UsageError, RunError: as `in_tasks`.
    """
    left = enumerate(calls)
    running: dict[Any, tuple[int, Any]] = {}

    def start(actor: Any) -> None:
        for number, args in itertools.islice(left, 1):
            running[getattr(actor, method).remote(*args)] = number, actor

    for actor in [*actors, *actors]:
        start(actor)
    while running:
        done, _ = ray.wait(list(running), timeout=stall_s)
        if not done:
            raise _stalled(stall_s)
        number, actor = running.pop(done[0])
        result = _get(done[0], stall_s)
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
