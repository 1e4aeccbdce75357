"""Media by URL: fetched from the hosts that the operator allows and nowhere else, within the limits of a body."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.serving.errors import ApiError
from deploy.serving.inputs import conversation_row, rows_of
from deploy.serving.schemas import Message, ModalItem
from deploy.serving.settings import ServeSettings
from tests.web import Handler, serving

asked: list[str] = []


class _Web(Handler):
    def do_GET(self) -> None:
        asked.append(self.path)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/a")  # type: ignore[attr-defined]
            self.end_headers()
            return
        if self.path == "/slow":
            time.sleep(3)
        body = b"x" * 600 if self.path.startswith("/long") else self.path.encode()
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with serving(_Web) as url:
        yield url


def settings(**given: Any) -> ServeSettings:
    allowed = {"url_hosts": "127.0.0.1", "url_schemes": "http", "url_private": True, "body_bytes": 1024}
    return ServeSettings(**{**allowed, "timeout_s": 1.0, **given})


def rows(*urls: str, **given: Any) -> list[Any]:
    return asyncio.run(rows_of([ModalItem(image=url) for url in urls], settings(**given), param="input"))


def refusal(*urls: str, **given: Any) -> tuple[int, str, str | None]:
    with pytest.raises(ApiError) as caught:
        rows(*urls, **given)
    return caught.value.status, caught.value.code, caught.value.param


def test_media_of_allowed_hosts_are_fetched_once_each(web: str) -> None:
    asked.clear()
    found = rows(f"{web}/a", f"{web}/b", f"{web}/a", "data:image/png;base64,aGk=")
    assert [row["image"] for row in found] == [b"/a", b"/b", b"/a", b"hi"]
    assert sorted(asked) == ["/a", "/b"]
    part = {"type": "image_url", "image_url": {"url": f"{web}/c"}}
    message = Message.model_validate({"role": "user", "content": [part]})
    assert asyncio.run(conversation_row([message], turns=1, settings=settings())) == {"image": b"/c"}


@pytest.mark.parametrize("given", [
    {"url_hosts": ""}, {"url_hosts": "example.com"}, {"url_hosts": "*.0.0.1x"}, {"url_schemes": "https"},
])  # fmt: skip
def test_nothing_else_is_asked(web: str, given: dict[str, Any]) -> None:
    asked.clear()
    assert refusal(f"{web}/a", **given) == (400, "url_not_allowed", "input[0].image")
    assert not asked


def test_one_bad_url_costs_nothing(web: str) -> None:
    asked.clear()
    assert refusal(f"{web}/a", "file:///etc/passwd") == (400, "url_not_allowed", "input[1].image")
    assert refusal(f"{web}/a", "http://[x/") == (400, "url_not_allowed", "input[1].image")
    assert not asked


def test_what_can_not_be_fetched_is_told(web: str) -> None:
    assert refusal(f"{web}/a", f"{web}/gone") == (400, "url_not_fetched", "input[1].image")
    assert refusal(f"{web}/a", url_private=False) == (400, "url_not_fetched", "input[0].image")
    asked.clear()
    assert refusal(f"{web}/away") == (400, "url_not_fetched", "input[0].image")  # another host, by a redirect
    assert asked == ["/away"]
    assert refusal(f"{web}/slow", timeout_s=0.3)[0] in (400, 504)


def test_urls_bring_no_more_than_a_body_may_hold(web: str) -> None:
    assert len(rows(f"{web}/long")) == 1
    assert refusal(f"{web}/long1", f"{web}/long2")[:2] == (413, "body_too_large")
    assert refusal(f"{web}/long", media_bytes=500) == (400, "url_not_fetched", "input[0].image")


@pytest.mark.parametrize(("host", "allowed"), [
    ("a.example.com", True), ("example.com", False), ("badexample.com", False), ("A.Example.COM.", True),
    ("cdn.net", True), ("x.cdn.net", False),
])  # fmt: skip
def test_hosts_by_name_and_by_suffix(host: str, allowed: bool) -> None:
    assert settings(url_hosts="*.example.com, cdn.net").urls.allows_host(host) == allowed
