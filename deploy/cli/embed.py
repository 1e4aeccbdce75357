"""`mmbm embed INPUT... --output DIR`"""

import argparse
from typing import Any

from pydantic import ValidationError

from deploy.cli.cluster import connect
from deploy.cli.settings import parse_settings, usage_error
from mmbm_core.sample import MODALITIES
from pipelines.dryrun import dry_run
from pipelines.embed import EmbedRequest, EmbedSettings, embed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm embed`."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL")
    add("--output", required=True, metavar="DIR", help="folder or URL for the vectors; an earlier run there is resumed")
    add("--model", default=EmbedRequest.model_fields["model"].default, metavar="M",
        help="presets, checkpoint folders or Hugging Face ids, joined by commas, or a trained bundle, by folder or URL "
             "(default: %(default)s)")  # fmt: skip
    for modality in MODALITIES:
        add(f"--{modality}-column", action="append", default=[], metavar="C", help=f"column of {modality} to embed")
    add("--id-column", metavar="C", help="column of row names (default: id, else path and position)")
    add("--explode", metavar="COLUMN", help="one row for each element of this list column")
    add("--format", metavar="F", help="force the input format")
    add("--precision", choices=["exact", "fast"], default="fast", help="exact: float32, equal to the reference library")
    add("--dry-run", action="store_true", help="say what the run would do and how long it would take")
    add("--retry-errors", action="store_true", help="take quarantined rows up again")
    add("--overwrite", action="store_true", help="delete what OUTPUT holds first")
    add("--on-bad-modality", choices=["quarantine", "drop"], default="quarantine",
        help="drop: keep a row without its bad modality")  # fmt: skip
    add("--max-error-rate", type=float, metavar="X", help="stop when a larger share of rows is quarantined")
    add("--allow-scheme", action="append", default=[], metavar="S", help="fetch URIs of this scheme (https, s3, ...)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=_settings_help())


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Embed, or say what would be done."""
    try:
        request = EmbedRequest(
            inputs=args.inputs, output=args.output, model=args.model,
            columns={m: getattr(args, f"{m}_column") for m in MODALITIES}, id_column=args.id_column,
            explode=args.explode, format=args.format, precision=args.precision, retry_errors=args.retry_errors,
            overwrite=args.overwrite, on_bad_modality=args.on_bad_modality, max_error_rate=args.max_error_rate,
            allow_schemes=args.allow_scheme, settings=parse_settings(EmbedSettings, args.settings),
        )  # fmt: skip
    except ValidationError as error:
        raise usage_error(error) from error
    connect()
    return dry_run(request) if args.dry_run else embed(request)


def _settings_help() -> str:
    return "one of: " + ", ".join(EmbedSettings.model_fields)
