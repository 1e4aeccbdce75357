"""`mmbm embed INPUT... --output DIR`"""

import argparse
from typing import Any

from pydantic import ValidationError

from deploy.cli.cluster import connect
from deploy.cli.rows import add_row_arguments, row_arguments
from deploy.cli.settings import parse_settings, usage_error
from pipelines.dryrun import dry_run
from pipelines.embed import EmbedRequest, EmbedSettings, embed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm embed`."""
    add = parser.add_argument
    add("--model", default=EmbedRequest.model_fields["model"].default, metavar="M",
        help="presets, checkpoint folders or Hugging Face ids, joined by commas, or a trained bundle, by folder or URL "
             "(default: %(default)s)")  # fmt: skip
    add_row_arguments(parser, does="embed")
    add("--precision", choices=["exact", "fast"], default="fast", help="exact: float32, equal to the reference library")
    add("--dry-run", action="store_true", help="say what the run would do and how long it would take")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=_settings_help())


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Embed, or say what would be done."""
    try:
        request = EmbedRequest(
            **row_arguments(args), model=args.model, precision=args.precision,
            settings=parse_settings(EmbedSettings, args.settings),
        )  # fmt: skip
    except ValidationError as error:
        raise usage_error(error) from error
    connect()
    return dry_run(request) if args.dry_run else embed(request)


def _settings_help() -> str:
    return "one of: " + ", ".join(EmbedSettings.model_fields)
