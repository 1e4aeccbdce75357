"""`mmbm export BUNDLE --output DIR`"""

import argparse
from typing import Any

from pipelines.export import ExportRequest, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm export`."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder or URL that `mmbm train` or `mmbm compress` wrote")
    add("--output", required=True, metavar="DIR",
        help="folder or URL for the bundle with ONNX; it appears when it is whole")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the bundle that OUTPUT holds")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export."""
    return export(ExportRequest(bundle=args.bundle, output=args.output, overwrite=args.overwrite))
