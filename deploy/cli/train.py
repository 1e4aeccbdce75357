"""`mmbm train RECIPE INPUT... --output DIR`"""

import argparse
from typing import Any

from deploy.cli.cluster import connect
from mmbm_core.errors import UsageError
from pipelines.recipe import load_recipe
from pipelines.recipe_file import known_recipes
from pipelines.train import TrainRequest, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm train`."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help=f"a YAML file, or one of {', '.join(known_recipes())}")
    add("inputs", nargs="+", metavar="INPUT",
        help="file, folder, glob or URL; names that begin with train, val, dev, test deal rows out")  # fmt: skip
    add("--val", metavar="INPUT", help="rows to validate on")
    add("--output", required=True, metavar="DIR", help="folder or URL for the bundle; it appears when it is whole")
    add("--cache", metavar="DIR",
        help="folder or URL where the output of frozen encoders is kept for later trainings")  # fmt: skip
    add("--seeds", type=int, default=1, metavar="N", help="models that differ in their seed, to tell luck from gain")
    add("--baselines", action="store_true", help="train each modality alone, and their concatenation, to compare with")
    add("--overwrite", action="store_true", help="replace the bundle that OUTPUT holds")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="replace a value of the recipe, such as training.epochs=3")  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train."""
    recipe = load_recipe(args.recipe, settings=args.settings)
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds}: give 1 or more")
    request = TrainRequest(
        recipe=recipe, inputs=args.inputs, val=args.val, output=args.output, overwrite=args.overwrite,
        seeds=args.seeds, baselines=args.baselines, cache=args.cache,
    )  # fmt: skip
    connect()
    return train(request)
