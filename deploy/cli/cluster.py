"""Connect to the Ray cluster there is, or start one on this machine."""

import logging
import os
import signal
from functools import partial

from mmbm_core.errors import RunError

_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or `ray start`; where there is none, start one that ends with this process.

    Raises:
        RunError: the cluster named by RAY_ADDRESS does not answer.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    stop = signal.getsignal(signal.SIGTERM)
    try:
        _init()
    except SystemExit:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, stop)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _init() -> None:
    import ray

    start = partial(ray.init, logging_level=logging.ERROR, log_to_driver=False)
    try:
        try:
            start(include_dashboard=False)
        except ValueError:  # an existing cluster takes no options
            start()
    except (ConnectionError, RuntimeError, OSError) as error:
        where = os.environ.get("RAY_ADDRESS")
        what = f"reach the Ray cluster at RAY_ADDRESS={where}" if where else "start Ray"
        raise RunError(f"can't {what}: {str(error).strip().splitlines()[0]}") from error
