"""`mmbm augment INPUT... --output DIR --recipe R`"""

import argparse
from typing import Any

from pydantic import ValidationError

from deploy.cli.cluster import connect
from deploy.cli.rows import add_row_arguments, row_arguments
from deploy.cli.settings import parse_settings, usage_error
from pipelines.augment import RECIPES, AugmentRequest, augment, load_augment_recipe
from pipelines.preview import preview
from pipelines.recipe_file import known_recipes
from pipelines.request import RowsSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm augment`."""
    add = parser.add_argument
    add_row_arguments(parser, does="change")
    add("--recipe", required=True, metavar="R",
        help=f"what copies differ in: a YAML file, or one of {', '.join(known_recipes(RECIPES))}")  # fmt: skip
    add("--seed", type=int, default=0, metavar="S", help="equal seeds give equal copies (default: 0)")
    add("--preview", action="store_true", help="write a page of some rows and their copies, and nothing else")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help=f"one of: {', '.join(RowsSettings.model_fields)}; or a key of the recipe: image.flip=true")  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Augment, or show what copies would be like."""
    own = [pair for pair in args.settings if pair.partition("=")[0] in RowsSettings.model_fields]
    recipe = load_augment_recipe(args.recipe, settings=[pair for pair in args.settings if pair not in own])
    try:
        request = AugmentRequest(
            **row_arguments(args), recipe=recipe, seed=args.seed, settings=parse_settings(RowsSettings, own)
        )
    except ValidationError as error:
        raise usage_error(error) from error
    if args.preview:
        return preview(request)
    connect()
    return augment(request)
