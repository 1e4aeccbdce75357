"""Inputs whose vectors are known."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmbm_core.bundle import load_bundle
from tests.survival.harness import cluster


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 short texts, one of them in error."""
    path = tmp_path_factory.mktemp("texts") / "t.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": f"r{n:05d}", "text": f"a red disc {n} and text {n * 7919}"} for n in range(4000)
    ]
    rows[1234]["text"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def vectors(texts: Path, text_model: str) -> dict[str, list[float]]:
    """What an unbroken run would give, by id."""
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    rows = [row for row in rows if row["text"]]
    embedded = load_bundle(text_model).embed(rows)["text_embedding"].to_pylist()
    return dict(zip((row["id"] for row in rows), embedded, strict=True))


@pytest.fixture(scope="session")
def two_cpus() -> Iterator[str]:
    """Address of a running cluster with two CPUs, and no GPU."""
    with cluster(2) as address:
        yield address
