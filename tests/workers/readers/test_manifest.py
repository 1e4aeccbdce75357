import os
from collections.abc import Callable
from typing import Any

from workers.readers.base import UnitSize
from workers.readers.manifest import ManifestReader

READER = ManifestReader()


def test_lines_become_uris(reading: Callable[..., Any], sizes: list[UnitSize], tmp_path: Any) -> None:
    lines = [
        "# images",
        "a/b.JPG",
        "",
        "/x/y.wav",
        "  https://h/z.png?w=1#f ",
        "s3://b/k ü.flac",
        "what.doc",
        "../c.jpg",
    ]
    file = reading(READER, "list.txt", "\n".join(lines).encode() + b"\n\xff.jpg\n")
    for size in sizes:
        found = file.all(size)
        assert found.rows == [
            {"image_uri": f"{tmp_path}/a/b.JPG", "audio_uri": None},
            {"image_uri": None, "audio_uri": "/x/y.wav"},
            {"image_uri": "https://h/z.png?w=1#f", "audio_uri": None},
            {"image_uri": None, "audio_uri": "s3://b/k ü.flac"},
            {"image_uri": os.path.join(str(tmp_path), "../c.jpg"), "audio_uri": None},
        ]
        assert len(found.bad) == 2


def test_only_lists_of_media_look_like_manifests() -> None:
    assert READER.sniff(b"a.jpg\n# no\nb.wav\n")
    assert not READER.sniff(b"a.jpg\nhello\n")
    assert not READER.sniff(b"")
