"""Entry point of `mmbm`: parses, runs a subcommand, prints one JSON line, turns trouble into an exit status."""

import argparse
import importlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

from mmbm_core.errors import RunError, UsageError

COMMANDS = {
    "quickstart": "see text, images and sound embedded, offline, in a minute",
    "embed": "embed a dataset of text, images and sound",
    "synthesize": "make a dataset of scenes with captions, speech and known truth",
    "inspect": "look at a dataset or an embeddings folder",
}
"""Each is a module `deploy.cli.NAME` with `add_arguments(parser)` and `run(args) -> result`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}\n`{self.prog} --help` explains each option")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (the run failed) or 2 (bad usage)."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        args = _parse(sys.argv[1:] if argv is None else argv)
        result = importlib.import_module(f"deploy.cli.{args.command}").run(args)
    except UsageError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once
            signal.signal(number, signal.SIG_DFL)
        return _fail("stopped; run the same command again to resume", 1)
    except BrokenPipeError:
        return 1
    print(json.dumps(result), flush=True)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="mmbm", description="Turn text, images and sound into vectors, on Ray.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((word for word in argv if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == wanted:  # a command's module loads only when it runs
            importlib.import_module(f"deploy.cli.{name}").add_arguments(command)
    return parser.parse_args(argv)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"\nmmbm: {message}\n")
    sys.stderr.flush()
    return status


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def start() -> NoReturn:
    """Console script. Ray's own shutdown can take seconds after all is written, and has nothing left to save."""
    status = main()
    sys.stdout.flush()
    try:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()
    finally:
        os._exit(status)


if __name__ == "__main__":
    start()
