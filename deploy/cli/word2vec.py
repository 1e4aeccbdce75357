"""`mmbm word2vec INPUT... --output DIR`"""

import argparse
from typing import Any

from pydantic import ValidationError

from deploy.cli.cluster import connect
from deploy.cli.settings import parse_settings, usage_error
from pipelines.word2vec import Word2VecRequest, Word2VecSettings, word2vec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `mmbm word2vec`."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or URL")
    add("--output", required=True, metavar="DIR", help="folder or URL for the model; it appears when it is whole")
    add("--text-column", action="append", default=[], metavar="C", help="column of text to learn from (default: all)")
    add("--format", metavar="F", help="force the input format")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="one of: " + ", ".join(Word2VecSettings.model_fields))  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train; the folder is a model for `mmbm embed --model DIR`."""
    try:
        request = Word2VecRequest(
            inputs=args.inputs, output=args.output, text_columns=args.text_column, format=args.format,
            settings=parse_settings(Word2VecSettings, args.settings),
        )  # fmt: skip
    except ValidationError as error:
        raise usage_error(error) from error
    connect()
    return word2vec(request)
