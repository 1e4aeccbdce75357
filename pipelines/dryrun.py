"""`mmbm embed --dry-run`: what a run would do, measured on a sample."""

from typing import Any

from pipelines.embed import EmbedRequest


def dry_run(request: EmbedRequest) -> dict[str, Any]:
    raise NotImplementedError
