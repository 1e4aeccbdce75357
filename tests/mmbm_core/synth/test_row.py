"""Rows as a whole: schema, repeatability, balance."""

import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmbm_core.synth import BUILT_IN, SCHEMA, SpeechUnavailable, make_row
from mmbm_core.synth import scene as scene_module
from mmbm_core.synth import speech as speech_module


def digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()


def test_rows_fit_the_schema() -> None:
    rows = [make_row(index, seed=1, speech=index < 2) for index in range(6)]
    assert all(list(row) == SCHEMA.names for row in rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert table.column("id").to_pylist()[3] == "synth-1-000000003"
    assert table.column("audio").null_count == table.column("voice").null_count == 4
    never_null = set(SCHEMA.names) - {name for name in SCHEMA.names if name.startswith("other_")}
    never_null -= {"audio", "voice", "speed_wpm", "pitch", "room", "noise", "snr_db"}
    assert all(table.column(name).null_count == 0 for name in never_null)


def test_a_row_is_the_same_in_any_order_and_process() -> None:
    pytest.importorskip("espeakng_loader")
    indices = [7, 3, 12, 0]
    first = {index: digest(make_row(index, seed=2)) for index in indices}
    again = {index: digest(make_row(index, seed=2)) for index in reversed(indices)}
    assert again == first
    code = (
        "import hashlib, json; from mmbm_core.synth import make_row;"
        "texts = [repr(sorted(make_row(index, seed=2).items())) for index in (3, 7)];"
        "print(json.dumps([hashlib.sha256(text.encode()).hexdigest() for text in texts]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert json.loads(done.stdout) == [first[3], first[7]]


def test_rows_of_the_built_in_world_are_what_they_always_were() -> None:
    """Of WORLD_VERSION 2; the figures were computed before worlds could be written by users."""
    rows = [make_row(index, seed=3, speech=False) for index in range(60)]
    told = "".join(repr([(k, v) for k, v in row.items() if k not in ("image", "audio")]) for row in rows)
    digest = "53b6db10fd91aef416d3ef445c3f22331d081cdd51816622f20d58fc9d7e11aa"
    assert hashlib.sha256(told.encode()).hexdigest() == digest
    means = [np.asarray(Image.open(io.BytesIO(row["image"]))).mean((0, 1)) for row in rows[:3]]
    # Not by their bytes: another JPEG library may round otherwise.
    expected = [[102.74, 102.56, 105.82], [129.6, 116.34, 94.65], [242.54, 238.28, 238.61]]
    np.testing.assert_allclose(means, expected, atol=0.1)


def test_seeds_and_indices_give_other_rows() -> None:
    rows = [make_row(index, seed=seed, speech=False) for seed in (0, 1) for index in range(8)]
    assert len({row["image"] for row in rows}) == 16
    assert len({row["text"] for row in rows}) > 14


def test_leaving_speech_out_changes_nothing_else() -> None:
    pytest.importorskip("espeakng_loader")
    spoken, silent = make_row(5, seed=4), make_row(5, seed=4, speech=False)
    assert {name for name in SCHEMA.names if spoken[name] != silent[name]} == {
        *("audio", "voice", "speed_wpm", "pitch", "room", "noise", "snr_db")
    }


@pytest.mark.parametrize(("index", "seed"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(index: int, seed: int) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        make_row(index, seed=seed)


def test_without_espeak_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    speech_module._locate.cache_clear()
    with pytest.raises(SpeechUnavailable, match=r"pip install 'mmbm\[offline\]'.*speech=False"):
        make_row(0, seed=0)
    speech_module._locate.cache_clear()
    assert make_row(0, seed=0, speech=False)["audio"] is None


def test_factors_are_balanced_and_independent() -> None:
    scenes = [scene_module.draw_scene(np.random.default_rng([9, index]), world=BUILT_IN) for index in range(2000)]
    values: dict[str, list[tuple[Any, ...]]] = {
        **{
            name: [(getattr(scene.main, name),) for scene in scenes]
            for name in ("shape", "colour", "size", "count", "place")
        },
        **{name: [(getattr(scene, name),) for scene in scenes] for name in ("background", "texture", "light", "blur")},
        "shape and colour": [(scene.main.shape, scene.main.colour) for scene in scenes],
    }
    sizes = {
        "shape": 8,
        "colour": 8,
        "size": 3,
        "count": 4,
        "place": 5,
        "background": 4,
        "texture": 4,
        "light": 5,
        "blur": 3,
    }
    for name, drawn in values.items():
        counts = Counter(drawn)
        share = 1 / sizes.get(name, 64)
        assert len(counts) == round(1 / share), name
        spread = 5 * (share * (1 - share) / len(scenes)) ** 0.5
        assert all(abs(count / len(scenes) - share) < spread for count in counts.values()), name
    pairs = sum(len(scene.groups) == 2 for scene in scenes)
    assert 0.42 < pairs / len(scenes) < 0.54
