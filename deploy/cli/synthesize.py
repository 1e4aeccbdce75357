"""`mmbm synthesize --output DIR --rows N [--world FILE]`"""

import argparse
from typing import Any

from deploy.cli.cluster import connect
from pipelines.progress import Progress, say
from pipelines.synthesize import synthesize
from pipelines.world import describe, known_worlds, load_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm synthesize`."""
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL for the Parquet files")
    parser.add_argument("--rows", required=True, type=int, metavar="N", help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="equal seeds give equal rows (default: 0)")
    parser.add_argument(
        "--world",
        metavar="FILE",
        help="YAML with your own colours, words and captions, or one that ships: " + ", ".join(known_worlds()),
    )
    parser.add_argument("--no-speech", action="store_true", help="leave the audio column null")
    parser.add_argument("--overwrite", action="store_true", help="replace parts of another seed, size or world")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make the dataset; a killed run is resumed by the same command."""
    world = load_world(args.world)
    say(describe(world))
    connect()
    progress = Progress("synthesize")
    result = synthesize(
        output=args.output,
        rows=args.rows,
        seed=args.seed,
        speech=not args.no_speech,
        world=world,
        overwrite=args.overwrite,
        progress=lambda done, total: progress.update(rows=done, fraction=done / total if done else None),
    )
    progress.close()
    return result
