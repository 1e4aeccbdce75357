"""Examples are written with Google's protobuf library, records with the framing that TensorFlow documents."""

import gzip
import struct
from collections.abc import Callable
from typing import Any

import google_crc32c
import pyarrow as pa
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from workers.readers import cursor
from workers.readers.base import UnitSize, UnreadableSource
from workers.readers.protobuf import parse_example
from workers.readers.tfrecord import TfRecordReader

READER = TfRecordReader()


def _example_class() -> Any:
    """tf.train.Example, built from its .proto definition."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    for name, kind in [
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ]:
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        feature.field.add(
            name=name.lower(),
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=f".t.{name}",
            label=kinds.LABEL_OPTIONAL,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".t.Feature", label=kinds.LABEL_OPTIONAL)
    features.field.add(
        name="feature",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".t.Features.FeatureEntry",
        label=kinds.LABEL_REPEATED,
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, type=kinds.TYPE_MESSAGE, type_name=".t.Features", label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = _example_class()


def example(**features: list[Any]) -> bytes:
    message = EXAMPLE()
    for name, values in features.items():
        kind = {bytes: "byteslist", float: "floatlist", int: "int64list"}[type(values[0])]
        getattr(message.features.feature[name], kind).value.extend(values)
    return bytes(message.SerializeToString())


def record(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = google_crc32c.value(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def example_of(index: int) -> bytes:
    return example(
        text=[f"ü {index}".encode()], image=[b"\xff\xd8" + bytes(index * 10)], n=[index - 50], v=[0.5, float(index)]
    )


RECORDS = [record(example_of(index)) for index in range(100)]
ROWS = [
    {"text": f"ü {index}", "image": b"\xff\xd8" + bytes(index * 10), "n": index - 50, "v": [0.5, float(index)]}
    for index in range(100)
]


def by_name(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(sorted(row.items())) for row in rows]


def test_check_sum_is_crc32c() -> None:
    assert google_crc32c.value(b"123456789") == 0xE3069283  # RFC 3720, B.4


def test_units_cover_every_record_once_and_in_order(
    reading: Callable[..., Any], sizes: list[UnitSize], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "LOCAL_BLOCK_BYTES", 100)
    file = reading(READER, "a.tfrecord", b"".join(RECORDS))
    for size in sizes:
        found = file.all(size)
        assert by_name(found.rows) == by_name(ROWS)
        assert found.positions == [sum(map(len, RECORDS[:index])) for index in range(100)]
    assert len(file.units(sizes[1])) == 15


def test_a_wrong_check_sum_of_data_costs_its_record_alone(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    damaged = bytearray(RECORDS[50])
    damaged[30] ^= 1
    for size in sizes:
        found = reading(READER, "a.tfrecord", b"".join([*RECORDS[:50], bytes(damaged), *RECORDS[51:]])).all(size)
        assert found.column("n") == [index - 50 for index in range(100) if index != 50]
        assert [row.position for row in found.bad] == [sum(map(len, RECORDS[:50]))]


def test_after_a_wrong_length_the_rest_is_one_bad_row(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    damaged = bytearray(RECORDS[50])
    damaged[0] ^= 1
    for size in sizes:
        found = reading(READER, "a.tfrecord", b"".join([*RECORDS[:50], bytes(damaged), *RECORDS[51:]])).all(size)
        assert len(found.rows) == 50 and len(found.bad) == 1


def test_a_truncated_file_keeps_what_is_whole(reading: Callable[..., Any], sizes: list[UnitSize]) -> None:
    for cut in (2, 10, 100):
        for size in sizes:
            found = reading(READER, "a.tfrecord", b"".join(RECORDS)[:-cut]).all(size)
            assert len(found.rows) == 99 and len(found.bad) == 1


def test_a_record_that_is_no_example_costs_itself_alone(reading: Callable[..., Any]) -> None:
    found = reading(READER, "a.tfrecord", RECORDS[0] + record(b"\x0a\xff\xff\xff") + RECORDS[1]).all()
    assert len(found.rows) == 2 and "not a tf.train.Example" in found.bad[0].error


def test_unpacked_numbers() -> None:
    value = b"\x08\x07\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # two varint fields: 7, -1
    feature = b"\x1a" + bytes([len(value)]) + value
    entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert parse_example(b"\x0a" + bytes([len(features)]) + features) == {"n": [7, -1]}


def test_several_values_in_a_scalar_column_cost_their_row_alone(reading: Callable[..., Any]) -> None:
    file = reading(READER, "a.tfrecord", b"".join(record(example(n=values)) for values in ([1], [2, 3], [4])))
    assert file.all().column("n") == [[1], [2, 3], [4]]
    found = file.all(schema=pa.schema([("n", pa.int64())]))
    assert found.column("n") == [1, 4] and "'n'" in found.bad[0].error


@pytest.mark.parametrize("data", [b"", b"text" * 100, b"x"])
def test_what_is_no_tfrecord_file_is_unreadable(reading: Callable[..., Any], data: bytes) -> None:
    with pytest.raises(UnreadableSource):
        reading(READER, "a.tfrecord", data).units()


def test_gzip(reading: Callable[..., Any]) -> None:
    packed = gzip.compress(b"".join(RECORDS))
    assert by_name(reading(READER, "a.tfrecord.gz", packed).all().rows) == by_name(ROWS)
