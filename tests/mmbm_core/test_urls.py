"""Rules of `mmbm_core.urls`, against a real server on the loopback address."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmbm_core import urls
from mmbm_core.errors import MediaError, UsageError
from mmbm_core.urls import UrlPolicy, fetch
from tests.web import Handler, serving

LOCAL_WEB = UrlPolicy(
    schemes=frozenset({"http"}), allow_private_addresses=True, max_bytes=1000, timeout_s=1.0, max_redirects=2
)


class _Handler(Handler):
    def do_GET(self) -> None:
        name = self.path.split("?")[0].strip("/")
        if name.startswith("to"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        body = {"long": b"x" * 2000, "endless": b"x" * 2000}.get(name, b"hello")
        self.send_response(404 if name == "gone" else 200)
        if name != "endless":
            self.send_header("Content-Length", str(len(body) + (5 if name == "cut" else 0)))
        if name == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if name == "drip":
            for _ in range(5):
                time.sleep(0.5)
                self.wfile.write(b"x")
                self.wfile.flush()
            return
        self.wfile.write(body if name != "host" else self.headers["Host"].encode()[:5])


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with serving(_Handler) as url:
        yield url


def test_fetches_a_body_and_follows_redirects(web: str) -> None:
    assert fetch(f"{web}/a b?q=1", policy=LOCAL_WEB) == b"hello"
    assert fetch("a", policy=LOCAL_WEB, base=f"{web}/folder/") == b"hello"
    assert fetch(f"{web}/to?/a", policy=LOCAL_WEB) == b"hello"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("long", "over the limit of 1000"),
        ("endless", "more than the limit of 1000"),
        ("gone", "status 404"),
        ("cut", "cut off: 5 of 10"),
        ("packed", "compressed"),
        ("to?/to?/to?/to?/a", "more than 2 redirects"),
        ("to?file:///etc/passwd", "redirects to file://"),
        ("to?https://example.com/secret", "--allow-scheme https"),
        ("to?http://[::1", "can't be parsed"),
    ],
)
def test_a_bad_answer_is_a_media_error(web: str, path: str, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        fetch(f"{web}/{path}", policy=LOCAL_WEB)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_slow_drip_ends_at_the_deadline(web: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(MediaError, match="within 1 s"):
        fetch(f"{web}/drip", policy=LOCAL_WEB)
    assert time.monotonic() - began_s < 2


def test_a_slow_drip_of_headers_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    for _ in range(8):
                        connection.sendall(b"H")
                        time.sleep(0.3)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        began_s = time.monotonic()
        with pytest.raises(MediaError, match="within 1 s"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/", policy=LOCAL_WEB)
        assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0"],
)
def test_private_hosts_are_refused(host: str) -> None:
    with pytest.raises(MediaError, match=r"no public address|resolved"):
        fetch(f"http://{host}:1/secret?token=1", policy=UrlPolicy(schemes=frozenset({"http"}), timeout_s=5))


def test_a_redirect_to_a_private_address_is_refused(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stands for a public server here; where it redirects to is judged anew."""
    real = urls._is_public
    monkeypatch.setattr(urls, "_is_public", lambda address: address == "127.0.0.1" or real(address))
    policy = UrlPolicy(schemes=frozenset({"http"}), timeout_s=2)
    assert fetch(f"{web}/a", policy=policy) == b"hello"
    with pytest.raises(MediaError, match="no public address"):
        fetch(f"{web}/to?http://169.254.169.254/latest", policy=policy)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, is_public: bool) -> None:
    assert urls._is_public(address) is is_public


def test_the_name_is_not_looked_up_twice(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(web.rpartition(":")[2])
    lookups: list[str] = []

    def look_up(host: str, port: int, deadline_s: float) -> list[str]:
        lookups.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(urls, "_resolve", look_up)
    assert fetch(f"http://media.test:{port}/host", policy=LOCAL_WEB) == b"media"
    assert lookups == ["media.test"]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://example.com/secret", "http:// is not allowed (allowed: https); allow it with --allow-scheme http"),
        ("gopher://example.com/secret", "can't be fetched"),
        ("https://user:secret@example.com/", "credentials"),
        ("s3://bucket/secret", "--allow-scheme s3"),
        ("https://exa\nmple.com\0/secret", ""),
        ("https://[secret/", "can't be parsed"),
        ("https://" + "a" * 5000 + "/secret", "resolved"),
    ],
)
def test_forbidden_uris(uri: str, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        fetch(uri, policy=UrlPolicy(schemes=frozenset({"https"}), timeout_s=2))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_options_in_a_store_uri_are_refused() -> None:
    with pytest.raises(MediaError, match="no credentials"):
        fetch("s3://key:secret@bucket/key", policy=UrlPolicy(schemes=frozenset({"s3"})))


def test_local_files_below_the_root_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.txt").write_bytes(b"inside")
    (tmp_path / "secret.txt").write_bytes(b"outside")
    (tmp_path / "rooted").mkdir()
    (tmp_path / "rooted" / "a.txt").write_bytes(b"outside")
    os.symlink(tmp_path / "secret.txt", root / "link.txt")
    os.symlink("sub/a.txt", root / "fine.txt")
    policy = UrlPolicy(roots=(str(root),))
    for uri in ("sub/a.txt", f"{root}/sub/a.txt", f"file://{root}/sub/a.txt", "fine.txt", "sub/../sub/a.txt"):
        assert fetch(uri, policy=policy) == b"inside"
    assert fetch("a.txt", policy=policy, base=str(root / "sub")) == b"inside"
    for uri in ("../secret.txt", "link.txt", "/etc/passwd", "file:///etc/passwd", "file://localhost/etc/passwd"):
        with pytest.raises(MediaError, match="outside the input folder"):
            fetch(uri, policy=policy)
    with pytest.raises(MediaError, match="outside"):
        fetch(f"{tmp_path}/rooted/a.txt", policy=policy)  # shares the letters of the root, not the folder
    assert fetch(f"{tmp_path}/secret.txt", policy=UrlPolicy(schemes=frozenset({"file"}))) == b"outside"
    both = UrlPolicy(roots=(str(root / "sub"), str(tmp_path / "rooted")))
    assert fetch(f"{tmp_path}/rooted/a.txt", policy=both) == b"outside"
    with pytest.raises(MediaError, match="outside"):  # what two roots have in common is none
        fetch(f"{tmp_path}/secret.txt", policy=both)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/in/../secret", "s3://bucket/inside/a", "s3://bucket/a", "s3://other/in/a"]
)
def test_objects_beside_the_input_are_refused(uri: str) -> None:
    with pytest.raises(MediaError, match="allow it with --allow-scheme s3"):
        fetch(uri, policy=UrlPolicy(stores=("s3://bucket/in",)))


def test_local_trouble_is_a_media_error(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe")
    policy = UrlPolicy(roots=(str(tmp_path),), max_bytes=10)
    for name, words in [
        ("big", "limit of 10"),
        ("pipe", "not a file"),
        ("none", "No such file"),
        (".", "not a file|Is a dir"),
        ("a\0b", "can't be read"),
    ]:
        with pytest.raises(MediaError, match=words):
            fetch(name, policy=policy)
    with pytest.raises(MediaError, match="not allowed"):
        fetch("/etc/passwd", policy=UrlPolicy())
    with pytest.raises(MediaError, match="no folder"):
        fetch("a", policy=UrlPolicy())


def test_an_unknown_scheme_in_a_policy_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'ftp'"):
        UrlPolicy(schemes=frozenset({"ftp"}))
