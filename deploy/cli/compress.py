"""`mmbm compress BUNDLE INPUT... --output DIR [--target-speedup X] [--max-loss X]`"""

import argparse
import math
from typing import Any

from deploy.cli.cluster import connect
from deploy.cli.settings import parse_settings
from mmbm_core.errors import UsageError
from pipelines.compress import CompressRequest, CompressSettings, compress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm compress`."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder or URL that `mmbm train` wrote")
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL, laid out as what it was trained on")
    add("--val", metavar="INPUT", help="rows to measure quality on")
    add("--output", required=True, metavar="DIR", help="folder or URL for the bundle; it appears when it is whole")
    add("--target-speedup", type=float, metavar="X",
        help="stop at the first step that is X times as fast (default: as small as the quality allows)")  # fmt: skip
    add("--max-loss", type=float, default=1.0, metavar="X",
        help="points that the metric may fall, on any subset of the modalities (default: 1)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the bundle that OUTPUT holds")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help=f"one of {', '.join(CompressSettings.model_fields)}")  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compress."""
    if args.target_speedup is not None and not args.target_speedup > 1:
        raise UsageError(f"--target-speedup {args.target_speedup}: give more than 1")
    if not 0 <= args.max_loss < math.inf:
        raise UsageError(f"--max-loss {args.max_loss}: give points, 0 or more")
    request = CompressRequest(
        bundle=args.bundle, inputs=args.inputs, val=args.val, output=args.output, overwrite=args.overwrite,
        target_speedup=args.target_speedup, max_loss=args.max_loss,
        settings=parse_settings(CompressSettings, args.settings),
    )  # fmt: skip
    connect()
    return compress(request)
