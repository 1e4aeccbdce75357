"""Media that requests name by URL, fetched where the operator allows it: `url_hosts` of the settings."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from deploy.serving.errors import ApiError
from deploy.serving.settings import ServeSettings
from mmbm_core.errors import MediaError
from mmbm_core.sample import Modality
from mmbm_core.urls import UrlPolicy, fetch

_THREADS = ThreadPoolExecutor(16, "fetch")
_AT_ONCE = 4
"""Of one request."""


class Link(NamedTuple):
    """Where a value is, instead of the value."""

    url: str
    param: str
    """The place in the request."""


async def fetch_links(rows: Sequence[Mapping[Modality, Any]], settings: ServeSettings) -> list[dict[Modality, Any]]:
    """The rows with what their links lead to; each URL is fetched once.

    Raises:
        ApiError: a URL that may not be fetched, or can't be; or all are more, or take longer, than a request may.
    """
    links = {value.url: value for row in rows for value in row.values() if isinstance(value, Link)}
    policy = settings.urls
    for link in links.values():
        _check(link, policy)
    gate, left_bytes = asyncio.Semaphore(_AT_ONCE), settings.body_bytes

    async def get(link: Link) -> bytes:
        nonlocal left_bytes
        async with gate:
            if left_bytes >= 0:
                body = await asyncio.get_running_loop().run_in_executor(_THREADS, _fetch, link, policy)
                left_bytes -= len(body)
        if left_bytes < 0:
            wrong = f"what the URLs lead to is larger than {settings.body_bytes} bytes"
            raise ApiError(413, wrong, code="body_too_large")
        return body

    try:
        async with asyncio.timeout(settings.timeout_s):
            bodies = await asyncio.gather(*map(get, links.values()))
    except TimeoutError:
        raise ApiError(504, f"the URLs took longer than {settings.timeout_s:g} s", code="timeout") from None
    found = dict(zip(links, bodies, strict=True))
    return [{m: found[v.url] if isinstance(v, Link) else v for m, v in row.items()} for row in rows]


def _check(link: Link, policy: UrlPolicy) -> None:
    """Before anything is fetched, so that one bad URL costs nothing."""
    try:
        parts = urlsplit(link.url)
        allowed = parts.scheme in policy.schemes and policy.allows_host(parts.hostname or "")
    except ValueError:
        allowed = False
    if not allowed:
        which = "URLs of this host are" if policy.schemes else "URLs are"
        wrong = f"{which} not fetched; send the file as base64 or as a data: URI"
        raise ApiError(400, wrong, code="url_not_allowed", param=link.param)


def _fetch(link: Link, policy: UrlPolicy) -> bytes:
    try:
        return fetch(link.url, policy=policy)
    except MediaError as error:
        raise ApiError(400, str(error), code="url_not_fetched", param=link.param) from None
