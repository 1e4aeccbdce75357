"""The look at the input's beginning: types, values to try the model on, values a row."""

from pathlib import Path

import pyarrow as pa
import pytest

from mmbm_core.errors import UsageError
from mmbm_core.rows import Encoding
from mmbm_core.urls import UrlPolicy
from pipelines.sample import SourceSample, sample_values, set_types, values_per_row

TEXT = Encoding(column="captions", modality="text", output="text_embedding")
IMAGE = Encoding(column="image_uri", modality="image", output="image_embedding", uri=True)


def test_values_are_what_rows_hold_or_name(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"picture")
    rows = [{"captions": ["a", None, "b"], "image_uri": "x.png"}, {"captions": None, "image_uri": "missing.png"}]
    source = SourceSample(input_schema=None, rows=rows, num_sources=1, size_bytes=1, bad_rows=0, base=str(tmp_path))
    policy = UrlPolicy(roots=(str(tmp_path),))
    assert sample_values(source, [TEXT, IMAGE], urls=policy, limit=9) == {"text": ["a", "b"], "image": [b"picture"]}
    assert sample_values(source, [TEXT, IMAGE], urls=policy, limit=1)["text"] == ["a"]
    assert values_per_row(source, [TEXT, IMAGE]) == {"text": 1.5, "image": 1.0}


def test_column_types_replace_what_the_sources_show() -> None:
    schema = pa.schema([("zip", pa.int64()), ("text", pa.string())])
    assert set_types(schema, "zip:string").field("zip").type == pa.string()
    for wrong in ("zop:string", "zip:strong", "zip"):
        with pytest.raises(UsageError, match="column_types"):
            set_types(schema, wrong)
