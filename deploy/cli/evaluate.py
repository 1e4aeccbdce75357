"""`mmbm evaluate BUNDLE INPUT... [--task T] [--report DIR]`"""

import argparse
from typing import Any

from deploy.cli.cluster import connect
from pipelines.evaluate import EvaluateRequest, evaluate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm evaluate`."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder or URL that `mmbm train` wrote")
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL, laid out as what it was trained on")
    add("--task", metavar="T", help="score this task alone")
    add("--cache", metavar="DIR", help="folder or URL where the output of encoders is kept for later runs")
    add("--report", metavar="DIR", help="folder or URL for report.html and report.json")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score."""
    connect()
    return evaluate(
        EvaluateRequest(bundle=args.bundle, inputs=args.inputs, task=args.task, report=args.report, cache=args.cache)
    )
