"""What went wrong in a run, for its user: out of the layers Ray wraps it in, with what to do."""

import traceback

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from mmbm_core.errors import RunError, UsageError

RESUME = "run the same command again to resume"


def unwrap(error: Exception) -> Exception:
    """`error`, or what it amounts to where Ray raised it."""
    return user_error(error) if isinstance(error, RayError) else error


def user_error(error: BaseException) -> Exception:
    """The UsageError or RunError that `error` amounts to."""
    layers = list(_layers(error))
    for layer in layers:
        if isinstance(layer, RayTaskError):
            continue  # it passes for the error it carries, but its text is a traceback
        if isinstance(layer, (UsageError, RunError)):
            return layer
        if isinstance(layer, OSError) and layer.strerror:
            where = f" ({layer.filename})" if layer.filename else ""
            return RunError(f"{layer.strerror}{where}. Mend it and {RESUME}")
        if isinstance(layer, (OutOfMemoryError, WorkerCrashedError)):
            return RunError(f"a worker was killed, perhaps for lack of memory; fewer workers need less. Then {RESUME}")
        if isinstance(layer, ActorDiedError):
            return _start_error(str(layer)) or RunError(f"a worker died and could not be started again; {RESUME}")
    last = layers[-1]
    lines = [line for line in str(last).splitlines() if line.strip()]
    what = ": ".join([type(last).__name__, *lines[-1:]])
    if isinstance(last, RayError):
        return RunError(f"the Ray cluster failed ({what}); {RESUME}")
    return RunError(f"a worker failed: {what}")


def tell(error: Exception) -> dict[str, str]:
    """`error` as data: as an exception, Ray Data would wrap it until nothing but a text is left."""
    told = user_error(error)
    return {"kind": type(told).__name__, "message": str(told), "traceback": "".join(traceback.format_exception(error))}


def retell(told: dict[str, str]) -> Exception:
    """The exception that `tell` told."""
    return (UsageError if told["kind"] == "UsageError" else RunError)(told["message"])


def _start_error(text: str) -> Exception | None:
    """Why an actor could not start: of that, Ray keeps no more than a text that ends with the traceback."""
    for kind in (UsageError, RunError):
        _, found, message = text.rpartition(f"{kind.__module__}.{kind.__name__}: ")
        if found:
            return kind(message.strip())
    if "creation task" in text:
        return RunError(f"a worker could not start: {text.strip().splitlines()[-1]}")
    return None


def _layers(error: BaseException | None) -> "list[BaseException]":
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return found


def waiting_for() -> str:
    """Who waits for what, as the cluster tells it."""
    try:
        have, free = ray.cluster_resources(), ray.available_resources()
    except Exception as error:  # the cluster is gone: that is the answer
        return f"The Ray cluster does not answer ({type(error).__name__})"
    return (
        f"The cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU, free are {free.get('CPU', 0):g} "
        f"and {free.get('GPU', 0):g}; `ray status` shows who holds the rest"
    )
