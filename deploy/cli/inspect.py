"""`mmbm inspect PATH`"""

import argparse
from typing import Any

from pipelines.inspect import inspect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm inspect`."""
    parser.add_argument("path", metavar="PATH", help="a dataset, the OUTPUT of `mmbm embed`, or a trained bundle")
    parser.add_argument("--ids", action="store_true", help="of an OUTPUT: find ids that occur more than once")
    parser.add_argument("--format", metavar="F", help="force the input format")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Describe it on stderr; the figures are the result."""
    return inspect(args.path, ids=args.ids, format=args.format)
