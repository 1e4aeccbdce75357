"""Entry point of `mmbm`: parses, runs a subcommand, prints one JSON line, turns trouble into an exit status."""

import argparse
import importlib
import json
import os
import signal
import sys
import traceback
from functools import partial
from typing import Any, NoReturn

from deploy.cli.supervise import supervise
from mmbm_core.errors import RunError, UsageError
from pipelines.progress import answer, keep_to_ourselves, say

COMMANDS = {
    "quickstart": "the whole tour, offline: embed, train, score, find pictures by words and words by sound",
    "embed": "embed a dataset of text, images and sound",
    "augment": "enlarge a dataset by changed copies of its rows",
    "train": "train a model by a recipe",
    "evaluate": "score a trained model on rows it has not learnt from",
    "compress": "make a trained model smaller and faster, and measure both",
    "export": "add ONNX to a trained model, which runs faster on CPUs",
    "serve": "answer over HTTP: vectors, classes, rankings",
    "word2vec": "learn word vectors from the text of a dataset",
    "synthesize": "make a dataset of scenes with captions, speech and known truth",
    "inspect": "look at a dataset or an embeddings folder",
}
"""Each is a module `deploy.cli.NAME` with `add_arguments(parser)` and `run(args)`: what is answered, or None."""


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        answer(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}\n`{self.prog} --help` explains each option")


def main(argv: list[str] | None = None, *, log: str = "") -> int:
    """Run one command; returns the exit status: 0, 1 (the run failed) or 2 (bad usage).

    Args:
        log: file that standard error goes to beside our own lines; named where it tells more than they do.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        args = _parse(sys.argv[1:] if argv is None else argv)
        result = importlib.import_module(f"deploy.cli.{args.command}").run(args)
        if result is not None:
            answer(json.dumps(result))
        return 0
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once
            signal.signal(number, signal.SIG_DFL)
        return _fail("stopped; run the same command again to resume", 1)
    except BrokenPipeError:
        return 1
    except Exception as error:
        return _explain(error, log)


def _explain(error: Exception, log: str) -> int:
    if "ray" in sys.modules:
        from workers.trouble import unwrap

        error = unwrap(error)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        error = RunError(f"{error.strerror or str(error).strip()}{where}")
    if isinstance(error, (UsageError, RunError)):
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    traceback.print_exception(error)
    return _fail(f"this should not happen, please report it: {error!r}" + (f"; more in {log}" if log else ""), 1)


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
    say(f"\nmmbm: {message}")
    return status


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def start() -> NoReturn:
    """Console script."""
    log = keep_to_ourselves()
    supervise(partial(_run, log), log=log)


def _run(log: str) -> int:
    status = main(log=log)
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
    if status != 1 or not os.path.getsize(log):
        os.unlink(log)
    return status


if __name__ == "__main__":
    start()
