"""Just enough of the protobuf wire format to read `tf.train.Example`.

Sources: https://protobuf.dev/programming-guides/encoding and tensorflow/core/example/{example,feature}.proto
"""

import struct
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3

Values = list[bytes] | list[float] | list[int]


def parse_example(data: bytes) -> dict[str, Values]:
    """Features by name.

    Raises:
        ValueError: not an Example.
    """
    features: dict[str, Values] = {}
    for number, example_field in _fields(memoryview(data)):
        if number != 1:
            continue
        for _, entry in _fields(_span(example_field)):
            name, values = "", []  # type: tuple[str, Values]
            for key, value in _fields(_span(entry)):
                if key == 1:
                    name = str(_span(value), "utf-8")
                elif key == 2:
                    values = _feature(_span(value))
            features[name] = values
    return features


def _feature(data: memoryview) -> Values:
    values: Values = []
    for kind, body in _fields(data):
        if kind == _BYTES_LIST:
            values = [bytes(_span(value)) for _, value in _fields(_span(body))]
        elif kind == _FLOAT_LIST:
            values = [number for _, value in _fields(_span(body)) for number in _floats(value)]
        elif kind == _INT64_LIST:
            values = [number for _, value in _fields(_span(body)) for number in _integers(value)]
    return values


def _floats(value: int | memoryview) -> tuple[float, ...]:
    """Packed numbers, or a single one, which `_fields` hands over as four bytes."""
    data = _span(value)
    if len(data) % 4:
        raise ValueError("a float list of odd length")
    return struct.unpack(f"<{len(data) // 4}f", data)


def _integers(value: int | memoryview) -> Iterator[int]:
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield _signed(number)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values: an int of a varint, else the bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} is not known")
        if at + length > len(data):
            raise ValueError("a field ends after its message")
        yield tag >> 3, data[at : at + length]
        at += length


def _span(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError("a number is cut off or too long")
