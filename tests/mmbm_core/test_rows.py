"""Cells to vectors with an encoder that can be computed by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmbm_core.compress.vectors import VectorKind
from mmbm_core.errors import MediaError
from mmbm_core.rows import (
    Encoding,
    Vectors,
    cells_of,
    content_hash,
    embed_cells,
    hash_cells,
    unit_mean,
    vector_array,
    vector_values,
)

TEXT = Encoding(column="text", modality="text", output="text_embedding")
IMAGE = Encoding(column="image", modality="image", output="image_embedding")
WIDTHS: dict[Any, int] = {"text": 2, "image": 2, "audio": 2}


class Counting:
    """A value's vector is (its length, 1); `bad` is an error, `long` is cut."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def __call__(self, requests: list[tuple[Any, list[Any]]]) -> list[Vectors]:
        self.seen += [(modality, value) for modality, values in requests for value in values]
        return [self._encode(values) for _, values in requests]

    def _encode(self, values: list[Any]) -> Vectors:
        vectors = np.array([[len(v), 1] for v in values], np.float32)
        errors = {i: "it is bad" for i, v in enumerate(values) if v in ("bad", b"bad")}
        return Vectors(vectors, errors, {i for i, v in enumerate(values) if v == "long"})


def test_equal_values_are_encoded_once_and_remembered() -> None:
    encode, seen = Counting(), {}
    done = embed_cells([(TEXT, [("a",), ("bb",), ("a",), None])], encode=encode, widths=WIDTHS, seen=seen)
    assert encode.seen == [("text", "a"), ("text", "bb")] and done.duplicates == 1
    assert done.vectors["text_embedding"].tolist() == [[1, 1], [2, 1], [1, 1], [0, 0]]
    assert done.present["text_embedding"].tolist() == [True, True, True, False]
    again = embed_cells([(TEXT, [("bb",), ("ccc",)])], encode=encode, widths=WIDTHS, seen=seen)
    assert encode.seen[2:] == [("text", "ccc")] and again.duplicates == 1


def test_lists_are_the_mean_of_unit_vectors_and_cuts_are_counted_by_row() -> None:
    done = embed_cells([(TEXT, [("a", "long", "long"), ("long",)])], encode=Counting(), widths=WIDTHS)
    parts = [np.array([1, 1]) / np.sqrt(2), *[np.array([4, 1]) / np.sqrt(17)] * 2]
    mean = np.mean(parts, 0)
    np.testing.assert_allclose(done.vectors["text_embedding"][0], mean / np.linalg.norm(mean), rtol=1e-6)
    assert done.cut.tolist() == [2, 1]
    assert np.linalg.norm(unit_mean([np.array([3.0, 0]), np.array([0, 0.5])])) == pytest.approx(1)


def test_errors_name_the_modality_and_leave_the_rest_of_the_row() -> None:
    columns = [(TEXT, [("a",), ("bad",), ("a", "bad")]), (IMAGE, [MediaError("it is gone"), (b"bad",), (b"xx",)])]
    done = embed_cells(columns, encode=Counting(), widths=WIDTHS)
    assert done.errors == [
        {"image": "it is gone"},
        {"text": "it is bad", "image": "it is bad"},
        {"text": "it is bad"},
    ]
    assert done.modalities == [["text"], [], ["image"]]


def test_a_shared_space_is_the_mean_of_what_is_there() -> None:
    columns = [(TEXT, [("aaa",), ("a",), None]), (IMAGE, [(b"x",), None, None])]
    done = embed_cells(columns, encode=Counting(), widths=WIDTHS, shared=frozenset({"text", "image"}))
    mean = np.array([3, 1]) / np.sqrt(10) + np.array([1, 1]) / np.sqrt(2)
    np.testing.assert_allclose(done.vectors["embedding"][0], mean / np.linalg.norm(mean), rtol=1e-6)
    assert done.present["embedding"].tolist() == [True, True, False]
    assert done.present["text_embedding"].tolist() == [True, False, False]


def test_rows_without_keys_are_not_encoded() -> None:
    encode = Counting()
    cells: list[Any] = [("a",), ("bb",)]
    keys = [None, hash_cells(cells)[1]]
    done = embed_cells([(TEXT, cells)], encode=encode, widths=WIDTHS, keys=[keys])
    assert encode.seen == [("text", "bb")] and done.present["text_embedding"].tolist() == [False, True]


def test_what_a_cell_may_hold() -> None:
    assert cells_of([None, "", " \t", [], [None, ""], "a", ["a", None, "b"]], "text") == [
        *[None] * 5, ("a",), ("a", "b"),
    ]  # fmt: skip
    assert cells_of([3, 2.5, "é".encode()], "text") == [("3",), ("2.5",), ("é",)]
    assert cells_of([{"bytes": b"x", "path": "p"}, {"bytes": None, "path": None}, b"", bytearray(b"y")], "image") == [
        (b"x",), None, (b"",), (b"y",),
    ]  # fmt: skip
    wrong = [*cells_of([b"\xff", {"a": 1}, [["a"]]], "text"), *cells_of(["path.png", 3], "image")]
    assert all(isinstance(cell, MediaError) for cell in wrong)


def test_content_hashes_tell_values_apart() -> None:
    assert content_hash("a") == content_hash(b"a") != content_hash("b")
    assert len(content_hash("lone \ud800 surrogate")) == 16
    assert hash_cells([("ab",), ("a", "b"), None, MediaError("x")])[2:] == [(), None]


_STORED = {
    "float32": (pa.float32(), [1, -2]), "float16": (pa.float16(), [1, -2]), "int8": (pa.int8(), [64, -127]),
    "binary": (pa.uint8(), [0b1000_0000]),
}  # fmt: skip


@pytest.mark.parametrize("kind", _STORED)
def test_vector_arrays_have_a_fixed_width(kind: VectorKind) -> None:
    array = vector_array(np.array([[1, -2], [3, 4]], np.float32), np.array([True, False]), kind=kind)
    entry, stored = _STORED[kind]
    assert array.type == pa.list_(entry, len(stored))
    assert array.to_pylist() == [stored, None]
    assert vector_values(array, width=2)[0].tolist() == ([1, -1] if kind == "binary" else stored)


def test_a_fusion_sees_what_a_row_has_together_and_each_alone() -> None:
    asked: list[Any] = []

    def fuse(values: dict[Any, np.ndarray], present: dict[Any, np.ndarray]) -> np.ndarray:
        """(2,) -> (1,): the sum of the first numbers, 10 for each modality that is missing."""
        asked.append({m: p.tolist() for m, p in present.items()})
        first = [np.where(present[m], values[m][:, 0], 10) if m in values else 10 for m in ("text", "image")]
        return np.sum(np.broadcast_arrays(*first, np.zeros(len(next(iter(present.values()))))), axis=0)[:, None]

    title = Encoding(column="title", modality="text", output="title_embedding")
    columns: list[Any] = [
        (TEXT, [("aaa",), ("a",), None, None, ("a", "bbb")]),
        (title, [None, None, None, None, ("cccc",)]),
        (IMAGE, [(b"x",), None, (b"xx",), None, None]),
    ]
    shared: Any = frozenset({"text", "image"})
    done = embed_cells(columns, encode=Counting(), widths=WIDTHS, shared=shared, fuse=fuse)
    assert done.vectors["embedding"].tolist() == [[4], [11], [12], [0], [13]]  # 13: 10 and the mean of 2 and 4
    assert done.present["embedding"].tolist() == [True, True, True, False, True]
    assert done.vectors["text_embedding"].tolist() == [[13], [0], [0], [0], [12]]
    assert done.vectors["title_embedding"].tolist() == [[0], [0], [0], [0], [14]]
    assert done.present["text_embedding"].tolist() == [True, False, False, False, True]
    assert done.present["image_embedding"].tolist() == [True, False, False, False, False]
    assert {"image": [True]} in asked
    assert {"text": [True, True, False, True], "image": [True, False, True, False]} in asked


def test_a_fused_vector_that_is_not_finite_is_an_error_of_its_row() -> None:
    def fuse(values: dict[Any, np.ndarray], present: dict[Any, np.ndarray]) -> np.ndarray:
        return np.where(values["text"] > 2, np.inf, values["text"])

    columns: list[Any] = [(TEXT, [("aaa",), ("a",)])]
    done = embed_cells(columns, encode=Counting(), widths=WIDTHS, shared=frozenset({"text"}), fuse=fuse)  # type: ignore[arg-type]
    assert done.present["embedding"].tolist() == [False, True] and done.modalities == [[], ["text"]]
    assert done.errors == [{"text": "the fusion gave a vector that is not finite"}, {}]
    assert np.isfinite(done.vectors["embedding"]).all()
