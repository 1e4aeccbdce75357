"""Which URIs of a row may be fetched, and how. Batch and serving share these rules.

URIs come with the data, so they are not trusted: nothing is fetched that a `UrlPolicy` does not allow, and web servers
are asked at addresses of the public internet only (no SSRF). Proxies of the environment are not used.
"""

import http.client
import io
import ipaddress
import os
import queue
import socket
import ssl
import stat
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mmbm_core.errors import MediaError, UsageError

_WEB = ("http", "https")
STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
SCHEMES = ("file", *_WEB, *STORES)
"""Schemes that a policy can allow."""
_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK_BYTES = 1 << 16
_URL_MARKS = "/?%:@!$&'()*+,;=~-._[]"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class UrlPolicy:
    """What may be fetched. The default allows nothing but what lies below `roots` and `stores`.

    Raises:
        UsageError: a scheme that is none of `SCHEMES`.
    """

    schemes: frozenset[str] = frozenset()
    """Allowed schemes; `file` allows every local path."""
    stores: tuple[str, ...] = ()
    """Buckets or folders of them, such as `s3://bucket/in`, that are allowed whatever `schemes` says."""
    roots: tuple[str, ...] = ()
    """Local folders whose files may be read, links resolved."""
    max_bytes: int = 256 << 20
    timeout_s: float = 30.0
    """For the whole fetch: name, connections, redirects and body."""
    max_redirects: int = 3
    allow_private_addresses: bool = False
    """Web servers on private, loopback and link-local addresses too."""
    hosts: tuple[str, ...] | None = None
    """Web servers that may be asked; `*.example.com` stands for all below example.com. None: any."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.schemes) - set(SCHEMES))
        if unknown:
            raise UsageError(f"scheme {unknown[0]!r} can't be allowed; known: {', '.join(SCHEMES)}")

    def allows_host(self, host: str) -> bool:
        """May this web server be asked?"""
        host = host.lower().rstrip(".")
        return self.hosts is None or any(
            host.endswith(known[1:]) if known.startswith("*.") else host == known
            for known in map(str.lower, self.hosts)
        )


def fetch(uri: str, *, policy: UrlPolicy, base: str | None = None) -> bytes:
    """Bytes behind a URI or path. Relative paths begin at `base`, a folder or URL, or else at the policy's first root.

    Raises:
        MediaError: forbidden, missing, too large, too slow or cut off. It names scheme and host, never the rest.
    """
    if "://" not in uri and not uri.startswith("/"):
        start = base or next(iter(policy.roots), "")
        if not start:
            raise MediaError("a relative path, and no folder that it begins at")
        uri = f"{start.rstrip('/')}/{uri}"
    scheme = uri.partition("://")[0].lower() if "://" in uri else "file"
    if scheme == "file":
        path = unquote(uri[len("file://") :].removeprefix("localhost")) if "://" in uri else uri
        return _read_local(path, policy)
    if not any(uri.startswith(f"{store.rstrip('/')}/") for store in policy.stores) or ".." in uri.split("/"):
        _check_scheme(scheme, policy)
    if scheme in _WEB:
        return _fetch_web(uri, policy)
    return _read_store(scheme, uri, policy)


def _check_scheme(scheme: str, policy: UrlPolicy) -> None:
    if scheme not in SCHEMES:
        raise MediaError(f"URIs of scheme {scheme[:20]!r} can't be fetched; known: {', '.join(SCHEMES)}")
    if scheme not in policy.schemes:
        allowed = ", ".join(sorted(policy.schemes)) or "none"
        raise MediaError(f"{scheme}:// is not allowed (allowed: {allowed}); allow it with --allow-scheme {scheme}")


def _read_local(path: str, policy: UrlPolicy) -> bytes:
    try:
        real = os.path.realpath(path)
        if "file" not in policy.schemes:
            if not policy.roots:
                raise MediaError("local files are not allowed; allow them with --allow-scheme file")
            roots = map(os.path.realpath, policy.roots)
            if not any(os.path.commonpath([root, real]) == root for root in roots):
                raise MediaError("a local path outside the input folder; allow it with --allow-scheme file")
        # the resolved path has no links left to follow, and a pipe must not block
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise MediaError("a local path that is not a file")
            data = file.read(policy.max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"the local file can't be read: {_reason(error)}") from error
    return _capped(data, policy, "the local file")


def _read_store(scheme: str, uri: str, policy: UrlPolicy) -> bytes:
    """Only scheme and bucket reach the client: options in a row's URI could name another server or other keys."""
    authority, _, key = uri.partition("://")[2].partition("/")
    if "@" in authority or not authority or not key:
        raise MediaError(f"{scheme}:// needs a bucket and a key, and no credentials")
    try:
        filesystem, root = _store(scheme, authority)
        with filesystem.open_input_file(f"{root}/{key}") as file:
            data: bytes = file.read(policy.max_bytes + 1)
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = "no such object" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise MediaError(f"{scheme}://{_shown(authority)}: {reason}") from error
    return _capped(data, policy, f"{scheme}://{_shown(authority)}")


@lru_cache(maxsize=64)
def _store(scheme: str, authority: str) -> tuple[pafs.FileSystem, str]:
    filesystem, root = pafs.FileSystem.from_uri(f"{scheme}://{authority}")
    return filesystem, root.rstrip("/")


def _fetch_web(url: str, policy: UrlPolicy) -> bytes:
    deadline_s = time.monotonic() + policy.timeout_s
    for _ in range(policy.max_redirects + 1):
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
            place = f"{parts.scheme}://{_shown(host)}"
        except ValueError as error:
            raise MediaError("a URL that can't be parsed") from error
        if parts.username is not None or parts.password is not None:
            raise MediaError(f"{place}: URLs with credentials are not fetched")
        if not policy.allows_host(host):
            raise MediaError(f"{place}: not one of the hosts that are fetched from")
        try:
            with _connect(host, port, policy, deadline_s) as raw, _secure(raw, parts.scheme, host, deadline_s) as sock:
                target = quote(f"{parts.path or '/'}{parts.query and '?'}{parts.query}", safe=_URL_MARKS)
                found = _request(parts.scheme, host, port, target, _Timed(sock, deadline_s), policy)
        except MediaError as error:
            raise MediaError(f"{place}: {error}") from error
        except TimeoutError as error:
            raise MediaError(f"{place}: no whole answer within {policy.timeout_s:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MediaError(f"{place}: {_reason(error)}") from error
        if isinstance(found, bytes):
            return found
        try:
            url = urljoin(url, found)
            scheme = urlsplit(url).scheme
        except ValueError as error:
            raise MediaError(f"{place}: redirects to a URL that can't be parsed") from error
        if scheme not in _WEB:
            raise MediaError(f"{place}: redirects to {scheme[:20]}://, which is not a web address")
        _check_scheme(scheme, policy)
    raise MediaError(f"{place}: more than {policy.max_redirects} redirects")


def _connect(host: str, port: int, policy: UrlPolicy, deadline_s: float) -> socket.socket:
    """Connect to an address that was checked, not to the name: a second lookup could answer something else."""
    addresses = _resolve(host, port, deadline_s)
    if not policy.allow_private_addresses:
        addresses = [address for address in addresses if _is_public(address)]
    if not addresses:
        raise MediaError("the host has no public address; private ones are not fetched from")
    error: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left_s(deadline_s))
        except TimeoutError:
            raise
        except OSError as trouble:
            error = trouble
    raise error


def _resolve(host: str, port: int, deadline_s: float) -> list[str]:
    """Addresses of a host. The system's lookup knows no timeout, so it runs in a thread that is left behind."""
    answers: queue.Queue[list[Any] | Exception] = queue.Queue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = answers.get(timeout=_left_s(deadline_s))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise MediaError("the host name can't be resolved")
    return list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found))


def _is_public(address: str) -> bool:
    """Is this an address of the public internet, and the IPv4 address that it may stand for too?"""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _secure(sock: socket.socket, scheme: str, host: str, deadline_s: float) -> socket.socket:
    if scheme == "http":
        return sock
    sock.settimeout(_left_s(deadline_s))
    return _tls().wrap_socket(sock, server_hostname=host)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _request(scheme: str, host: str, port: int, target: str, sock: "_Timed", policy: UrlPolicy) -> bytes | str:
    """Body of the answer, or where it redirects to."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port)
    connection.auto_open = 0
    connection.sock = sock
    connection.request(
        "GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "mmbm", "Connection": "close"}
    )
    response = connection.getresponse()
    if response.status in _REDIRECTS and response.headers.get("Location"):
        return str(response.headers["Location"])
    if response.status != 200:
        raise MediaError(f"the server answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MediaError("the server sent a compressed body that was not asked for")
    return _read_body(response, policy)


def _read_body(response: http.client.HTTPResponse, policy: UrlPolicy) -> bytes:
    expected = response.length
    if expected is not None and expected > policy.max_bytes:
        raise MediaError(f"{expected} bytes are over the limit of {policy.max_bytes}")
    body = bytearray()
    while block := response.read(_BLOCK_BYTES):
        body += block
        if len(body) > policy.max_bytes:
            raise MediaError(f"more than the limit of {policy.max_bytes} bytes")
    if expected is not None and len(body) < expected:
        raise MediaError(f"the body was cut off: {len(body)} of {expected} bytes")
    return bytes(body)


class _Timed(io.RawIOBase):
    """A socket whose every operation gets what is left of the deadline: slow drips can't stretch it.

    It plays the socket for `http.client` and closes nothing, since the caller owns the real one.
    """

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock = sock
        self._deadline_s = deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left_s(self._deadline_s))
        return self._sock.recv_into(buffer)

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(_left_s(self._deadline_s))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        pass


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _capped(data: bytes, policy: UrlPolicy, place: str) -> bytes:
    if len(data) > policy.max_bytes:
        raise MediaError(f"{place}: more than the limit of {policy.max_bytes} bytes")
    return data


def _shown(host: str) -> str:
    """A host as messages show it."""
    return "".join(mark for mark in host[:100] if mark.isprintable())


def _reason(error: Exception) -> str:
    """The system's words, which hold no path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
