"""Connect to the Ray cluster there is, or start one on this machine."""

import logging
import os
import secrets
import signal
import socket
from functools import partial
from pathlib import Path

from mmbm_core.errors import RunError

_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_CONNECT_S = 10.0


def connect() -> bool:
    """Join the cluster of RAY_ADDRESS or `ray start`; where there is none, start one that ends with this process.

    Returns:
        Was one started?

    Raises:
        RunError: the cluster named by RAY_ADDRESS does not answer.
    """
    for name, value in (_SETTINGS | _private_token()).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    stop = signal.getsignal(signal.SIGTERM)
    try:
        started = _init()
    except SystemExit:  # Ray's own answer to SIGTERM
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, stop)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return started


def _private_token() -> dict[str, str]:
    """A token for the cluster that this process may start, where its user has none.

    Ray would write one into the home folder: from then on `ray start` asks for it, and `ray job submit` does not give
    it.
    """
    named = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    known = named or (Path.home() / ".ray" / "auth_token").exists()
    return {} if known else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _init() -> bool:
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    import ray

    start = partial(ray.init, logging_level=logging.ERROR, log_to_driver=False)
    try:
        try:
            start(include_dashboard=False)
            return True
        except ValueError:  # an existing cluster takes no options
            start()
            return False
    except Exception as error:  # of any kind, the bare one among them: a busy machine on which a node starts too late
        # Ray keeps its token from a cluster that is named, even where that cluster asks for it.
        named = "RAY_ADDRESS" in os.environ and "RAY_AUTH_MODE" not in os.environ
        hint = "; where it was started with token authentication, set RAY_AUTH_MODE=token" if named else ""
        raise RunError(f"can't start or join a Ray cluster: {str(error).strip().splitlines()[0]}{hint}") from error


def _check_address(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise RunError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error.strerror or error}") from error
