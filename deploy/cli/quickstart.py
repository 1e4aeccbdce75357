"""`mmbm quickstart`"""

import argparse
from typing import Any

from deploy.cli.cluster import connect
from pipelines.quickstart import ROWS, quickstart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm quickstart`."""
    parser.add_argument("--output", default="quickstart", metavar="DIR", help="local folder (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="scenes to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the scenes (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Take the tour."""
    connect()
    return quickstart(args.output, rows=args.rows, seed=args.seed)
