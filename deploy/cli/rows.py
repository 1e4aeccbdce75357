"""Arguments of every command over a dataset."""

import argparse
from typing import Any

from mmbm_core.sample import MODALITIES


def add_row_arguments(parser: argparse.ArgumentParser, *, does: str) -> None:
    """INPUT and what is said of its rows.

    Args:
        does: what the command does to columns, for the help.
    """
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL")
    add("--output", required=True, metavar="DIR", help="folder or URL for the rows; an earlier run there is resumed")
    for modality in MODALITIES:
        add(f"--{modality}-column", action="append", default=[], metavar="C", help=f"column of {modality} to {does}")
    add("--id-column", metavar="C", help="column of row names (default: id, else path and position)")
    add("--explode", metavar="COLUMN", help="one row for each element of this list column")
    add("--format", metavar="F", help="force the input format")
    add("--retry-errors", action="store_true", help="take quarantined rows up again")
    add("--overwrite", action="store_true", help="delete what OUTPUT holds first")
    add("--on-bad-modality", choices=["quarantine", "drop"], default="quarantine",
        help="drop: keep a row without its bad modality")  # fmt: skip
    add("--max-error-rate", type=float, metavar="X", help="stop when a larger share of rows is quarantined")
    add("--allow-scheme", action="append", default=[], metavar="S", help="fetch URIs of this scheme (https, s3, ...)")


def row_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of a `RowsRequest`."""
    return {
        "inputs": args.inputs,
        "output": args.output,
        "columns": {m: getattr(args, f"{m}_column") for m in MODALITIES},
        "id_column": args.id_column,
        "explode": args.explode,
        "format": args.format,
        "retry_errors": args.retry_errors,
        "overwrite": args.overwrite,
        "on_bad_modality": args.on_bad_modality,
        "max_error_rate": args.max_error_rate,
        "allow_schemes": args.allow_scheme,
    }
