"""What is wrong with a request is said, and where; what is merely odd is answered."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest

from tests.deploy.serving.conftest import Client, b64
from tests.samples import image_file

TEXT = {"text": "a red disc"}


def png(width: int, height: int) -> bytes:
    """All black: a few hundred bytes a megapixel."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
              b"IDAT": zlib.compress(bytes((width * 3 + 1) * height)), b"IEND": b""}  # fmt: skip
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def wav(samples: int, *, size: int) -> bytes:
    """A sound whose header claims `size` bytes of samples."""
    kind = struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16)
    return b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + b"WAVEfmt " + kind + b"data" + struct.pack("<I", size) + bytes(
        2 * samples
    )  # fmt: skip


WRONG: dict[str, tuple[Any, int, str, str]] = {
    "no json": (b"{", 400, "invalid_request", ""),
    "not utf-8": (b"\xff\xfe", 400, "invalid_request", ""),
    "deep": (b"[" * 50_000, 400, "invalid_request", ""),
    "no model": ({"input": "a"}, 400, "model_missing", "model"),
    "unknown model": ({"model": "x", "input": "a"}, 404, "model_not_found", "model"),
    "empty text": ({"model": "text", "input": ["a", ""]}, 400, "empty_input", "input[1]"),
    "no items": ({"model": "text", "input": []}, 400, "invalid_request", "input"),
    "a number": ({"model": "text", "input": 7}, 400, "invalid_request", "input"),
    "unknown key": ({"model": "text", "input": [{"txt": "a"}]}, 400, "invalid_request", "input[0].txt"),
    "nan": (b'{"model": "text", "input": "a", "dimensions": NaN}', 400, "invalid_request", "dimensions"),
    "dimensions": ({"model": "text", "input": "a", "dimensions": 33}, 400, "invalid_request", "dimensions"),
    "no base64": ({"model": "fused", "input": [{"image": "?!"}]}, 400, "invalid_base64", "input[0].image"),
    "no image": ({"model": "fused", "input": [TEXT, {"image": b64(b"x" * 99)}]}, 400, "invalid_input", "input[1]"),
    "cut image": ({"model": "fused", "input": [{"image": b64(image_file("JPEG")[:-50])}]}, 400, "invalid_input",
                  "input[0]"),
    "not of its kind": ({"model": "fused", "input": [{"audio": b64(image_file())}]}, 400, "invalid_input", "input[0]"),
    "alien": ({"model": "text", "input": [{"image": b64(image_file())}]}, 400, "invalid_input", "input[0]"),
    "url": ({"model": "fused", "input": [{"image": "http://127.0.0.1/a.png"}]}, 400, "url_not_allowed",
            "input[0].image"),
    "file": ({"model": "fused", "input": [{"image": "file:///etc/passwd"}]}, 400, "url_not_allowed", "input[0].image"),
    "two texts": ({"model": "fused", "input": [{"content": [{"type": "text", "text": "a"}] * 2}]}, 400,
                  "too_many_parts", "input[0].content[1]"),
    "long text": ({"model": "text", "input": "x" * 6000}, 400, "invalid_input", "input[0]"),
    "many items": ({"model": "text", "input": ["a"] * 65}, 413, "too_many_items", "input"),
    "many images": ({"model": "fused", "input": [{"image": b64(image_file())}] * 9}, 413, "too_many_items", "input"),
    "large body": (b" " * (2 << 20), 413, "body_too_large", ""),
    "token": ({"model": "text", "input": [10**9]}, 400, "invalid_input", "input[0]"),
    "huge body": (b" " * (100 << 20), 413, "body_too_large", ""),
    "100,000 items": (b'{"model": "text", "input": [' + b"[1]," * 99_999 + b"[1]]}", 413, "too_many_items", "input"),
    "negative token": ({"model": "text", "input": [[3, -1]]}, 400, "invalid_request", "input[0][1]"),
    "no token": ({"model": "text", "input": [[3, True]]}, 400, "invalid_request", "input[0][1]"),
    "huge token": (b'{"model": "text", "input": [' + b"9" * 4000 + b"]}", 400, "invalid_input", "input[0]"),
    "huge number": (b'{"model": "text", "input": "a", "dimensions": ' + b"9" * 5000 + b"}", 400, "invalid_request", ""),
    "infinite": (b'{"model": "text", "input": "a", "dimensions": 1e999}', 400, "invalid_request", "dimensions"),
    "a word for a number": ({"model": "text", "input": "a", "dimensions": "5"}, 400, "invalid_request", "dimensions"),
    "long model": ({"model": "m" * 100_000, "input": "a"}, 400, "invalid_request", "model"),
    "bomb": ({"model": "fused", "input": [{"image": b64(png(12_000, 12_000))}]}, 400, "invalid_input", "input[0]"),
    "no sound": ({"model": "fused", "input": [{"audio": b64(wav(0, size=0))}]}, 400, "invalid_input", "input[0]"),
    "no file": ({"model": "fused", "input": [{"audio": ""}]}, 400, "empty_input", "input[0].audio"),
    "4 GB of sound": ({"model": "fused", "input": [{"audio": b64(wav(800, size=0xFFFFFFE0))}]}, 400, "invalid_input",
                      "input[0]"),
    "bad utf-8": (b'{"model": "text", "input": "\xff\xfe"}', 400, "invalid_request", ""),
    "overlong utf-8": (b'{"model": "text", "input": "\xc0\x80"}', 400, "invalid_request", ""),
    "surrogate": (b'{"model": "text", "input": "\\ud800"}', 400, "invalid_request", ""),
    "surrogate, turned": (b'{"model": "text", "input": "\\udc00\\ud800"}', 400, "invalid_request", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_where(client: Client, name: str) -> None:
    body, status, code, param = WRONG[name]
    found = client.post("/v1/embeddings", body)
    assert found.error == (status, code, param)
    assert found.headers["content-type"] == "application/json" and "/tmp" not in found.content.decode()
    assert client.post("/v1/embeddings", {"model": "text", "input": "a"}).status == 200


ODD: dict[str, bytes] = {
    "nul": b'{"model": "text", "input": "a\\u0000b"}',
    "nul alone": b'{"model": "text", "input": "\\u0000"}',
    "the last of two": b'{"model": "nobody", "input": 7, "model": "text", "input": "a"}',
    "a pair of surrogates": b'{"model": "text", "input": "\\ud83d\\ude42"}',
    "deep and unknown": b'{"model": "text", "input": "a", "x": ' + b"[" * 150 + b"]" * 150 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_answered(client: Client, name: str) -> None:
    (found,) = client.post("/v1/embeddings", ODD[name]).json["data"]
    assert np.isfinite(found["embedding"]).all() and len(found["embedding"]) == 32


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", ";;;"])
def test_json_is_read_whatever_it_is_called(client: Client, kind: str) -> None:
    headers = {"content-type": kind}
    assert client.post("/v1/embeddings", {"model": "text", "input": "a"}, **headers).status == 200
    assert client.post("/v1/embeddings", b"--x\r\n\r\n--x--", **headers).error == (400, "invalid_request", "")
