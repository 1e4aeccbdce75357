"""`mmbm serve [NAME=]MODEL...`"""

import argparse
import asyncio
import atexit
import contextlib
import ipaddress
import json
import os
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Mapping

import yaml
from pydantic import ValidationError

from deploy.cli.cluster import connect
from deploy.cli.settings import parse_settings, usage_error
from deploy.serving.settings import ServeSettings, key_digests, named_models
from mmbm_core.errors import RunError, UsageError
from mmbm_core.names import DEFAULT_MODEL
from pipelines.progress import answer, say

_NAME = "mmbm"
_TICK_S = 0.5
_SERVE = {
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.serving.proxy:prepare",
}
_THROUGHPUT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(1 << 28),  # 4 MB otherwise: less than one picture
}  # fmt: skip
_HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg", "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "", "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}  # fmt: skip
_HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm serve`."""
    add = parser.add_argument
    add("models", nargs="*", metavar="[NAME=]MODEL", default=[],
        help=f"a bundle, preset, checkpoint folder or Hugging Face id (default: {DEFAULT_MODEL})")  # fmt: skip
    add("--host", default="127.0.0.1", metavar="H", help="address to listen at (default: this machine alone)")
    add("--port", type=int, default=8000, metavar="P")
    add("--config", metavar="F", help="YAML of the settings that --set takes")
    add("--api-keys-file", metavar="F", help="keys that may call, one a line (or MMBM_API_KEYS, commas between them)")
    add("--allow-anonymous", action="store_true", help="let everybody in; on a loopback host only")
    add("--throughput", action="store_true",
        help="HAProxy takes the requests: several times as many small ones a second. Its metrics and statistics listen "
        "at two more ports, of all addresses")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="one of: " + ", ".join(ServeSettings.model_fields))  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    settings = _settings(args)
    digests = key_digests(args.api_keys_file, allow_anonymous=args.allow_anonymous)
    if args.allow_anonymous and not _is_loopback(args.host):
        raise UsageError(f"--allow-anonymous is for loopback hosts; {args.host} needs --api-keys-file or MMBM_API_KEYS")
    if not 0 < args.port < 65536:
        raise UsageError(f"--port {args.port} is no port; allowed: 1 to 65535")
    models = named_models(args.models) or {"default": DEFAULT_MODEL}
    _check_models(models)
    _check_free(args.host, args.port)
    for name, value in _SERVE.items():
        os.environ.setdefault(name, value)
    missing = _turn_on_throughput() if args.throughput else []
    ours = connect()
    if missing and not ours:
        raise UsageError(
            f"--throughput is settled when a cluster starts, on each of its nodes: {' '.join(missing)} ray start ..."
        )
    url = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"
    _start(models, settings, digests, host=args.host, port=args.port)
    _check_answers(url)
    answer(json.dumps({"url": url}))
    _wait(url)
    asyncio.run(_drain(settings.timeout_s))
    time.sleep(_TICK_S)  # the last answers are on their way through the proxy
    if not ours:  # else it ends with this process
        _stop()


def _turn_on_throughput() -> list[str]:
    """Set what a cluster of our own needs; returns what the environment lacked, as `NAME=value`."""
    missing = [f"{name}={value}" for name, value in _THROUGHPUT.items() if os.environ.get(name) != value]
    os.environ.update(_THROUGHPUT)
    folder = tempfile.mkdtemp(prefix="mmbm-haproxy-")  # else two servers on a machine would share one
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, file in _HAPROXY_FILES.items():
        os.environ.setdefault(name, os.path.join(folder, file))
    for name in _HAPROXY_PORTS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ.setdefault(name, str(probe.getsockname()[1]))
    return missing


def _settings(args: argparse.Namespace) -> ServeSettings:
    """Of --config, with --set in their place."""
    try:
        given = parse_settings(ServeSettings, args.settings)
        if not args.config:
            return given
        with open(args.config) as file:
            content = yaml.safe_load(file) or {}
        if not isinstance(content, dict):
            raise UsageError(f"--config {args.config} holds no settings: write `key: value` lines")
        return ServeSettings.model_validate(content | given.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise usage_error(error) from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {args.config} is no YAML: {' '.join(str(error).split())[:200]}") from error
    except OSError as error:
        raise UsageError(f"can't read --config {args.config}: {error.strerror}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_models(models: Mapping[str, str]) -> None:
    """All that name nothing, together, before a cluster starts."""
    from mmbm_core.names import model_names
    from workers.bundles import model_parts

    wrong = []
    for model in models.values():
        try:
            for name in model_names(model):
                model_parts(name)
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError("\n".join(wrong))


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"can't listen at {host}:{port}: {error.strerror}; give another --host or --port"
            ) from error


def _start(
    models: Mapping[str, str], settings: ServeSettings, digests: tuple[str, ...], *, host: str, port: int
) -> None:
    from ray import serve

    from deploy.serving.app import assemble

    say(f"loading {', '.join(models)}")
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(assemble(dict(models), settings, digests), name=_NAME, route_prefix="/", blocking=False)
    except RuntimeError as error:
        cause = _cause(error)
        _stop()
        raise RunError(f"a model could not be loaded: {cause}") from error


def _cause(error: Exception) -> str:
    from ray import serve

    deployments = serve.status().applications[_NAME].deployments if _NAME in serve.status().applications else {}
    told = [d.message for d in deployments.values() if d.message]
    lines = [line.strip() for text in [*told, str(error)] for line in text.splitlines() if "Error" in line]
    return lines[-1] if lines else str(error).splitlines()[0]


def _check_answers(url: str) -> None:
    """Serve takes no new address where it runs already."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=10).close()
    except OSError as error:
        raise RunError(
            f"nothing answers at {url}: Ray Serve already runs on this cluster, at another address; stop it by `serve "
            "shutdown`, or deploy there by `serve deploy`"
        ) from error


def _wait(url: str) -> None:
    """Until a signal; then what runs is finished and no more is taken."""
    say(f"serving at {url}; try it at {url}/ui, its routes are at {url}/docs; Ctrl-C ends it")
    try:
        while True:
            time.sleep(_TICK_S)
    except KeyboardInterrupt:
        say("finishing what runs")


async def _drain(timeout_s: float) -> None:
    """Refuse what comes, and wait for what runs. (With --throughput handles work inside an event loop only.)"""
    from ray import serve
    from ray.exceptions import RayError

    handle = serve.get_app_handle(_NAME)
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(RayError, TimeoutError):  # it is gone: so is all that ran in it
        while await asyncio.wait_for(handle.drain.remote(), timeout_s) and time.monotonic() < deadline:
            await asyncio.sleep(_TICK_S / 5)


def _stop() -> None:
    """Ours; and Serve with it, where it has nothing else."""
    from ray import serve

    serve.delete(_NAME)
    if not serve.status().applications:
        serve.shutdown()
