"""Connect to the Ray cluster there is, or start one on this machine."""

import logging
import os

from mmbm_core.errors import RunError


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or `ray start`; where there is none, start a local one that ends with this process.

    Raises:
        RunError: the cluster named by RAY_ADDRESS does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray

    try:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except ValueError:  # an existing cluster takes no options
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        raise RunError(f"can't reach or start a Ray cluster: {error}") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
