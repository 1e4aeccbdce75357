"""A scene as one row: picture, speech, captions, dialogue, pairs, a statement, and every factor as a label."""

from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa

from mmbm_core.errors import UsageError
from mmbm_core.synth.dialogue import converse
from mmbm_core.synth.draw import encode_jpeg, render
from mmbm_core.synth.grammar import NUM_PHRASINGS, caption, contradict, paraphrase
from mmbm_core.synth.statement import state
from mmbm_core.synth.utterance import utter
from mmbm_core.synth.world import Layout, Scene, choose, draw_scene, lay_out

WORLD_VERSION = 2
"""Raised whenever the same seed and index give another row than before."""
CAPTIONS_PER_ROW = 3
LANGUAGES = ("en", "de", "fr")

_THING = pa.struct(
    [
        *((name, pa.string()) for name in ("shape", "colour", "size")),
        *((name, pa.float32()) for name in ("x_px", "y_px", "radius_px", "tilt_deg")),
        ("occluded", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        # What the row shows, as English text, JPEG and spoken FLAC; the same text in two more languages.
        ("text", pa.string()),
        ("image", pa.binary()),
        ("audio", pa.binary()),
        ("text_de", pa.string()),
        ("text_fr", pa.string()),
        # The k-th captions of the three languages are translations of each other; the 0-th are the texts above.
        *((f"captions_{language}", pa.list_(pa.string())) for language in LANGUAGES),
        ("turns", pa.list_(pa.string())),
        # The same scene in other words; a sentence that is false of it, and the one factor in which it is.
        ("similar", pa.string()),
        ("contradiction", pa.string()),
        ("contradicted", pa.string()),
        # A sentence about the picture, and whether it holds, "true" or "false": each alone tells nothing of it.
        ("statement", pa.string()),
        ("truth", pa.string()),
        *((name, pa.string()) for name in ("shape", "colour", "size")),
        ("count", pa.int32()),
        ("place", pa.string()),
        # The second group: null and 0 where there is none.
        *((f"other_{name}", pa.string()) for name in ("shape", "colour", "size")),
        ("other_count", pa.int32()),
        ("other_place", pa.string()),
        *((name, pa.string()) for name in ("background", "texture", "light", "blur", "occlusion")),
        ("objects", pa.list_(_THING)),
        # How the text is spoken; null without speech.
        ("voice", pa.string()),
        ("speed_wpm", pa.int32()),
        ("pitch", pa.int32()),
        ("room", pa.string()),
        ("noise", pa.string()),
        ("snr_db", pa.float32()),
    ]
)


class _Stream(IntEnum):
    """Each part of a row draws from a stream of its own, so a change to one part leaves the others as they were."""

    SCENE = 0
    LAYOUT = 1
    PIXELS = 2
    WORDS = 3
    DIALOGUE = 4
    PAIRS = 5
    VOICE = 6
    SOUND = 7
    STATEMENT = 8


def make_row(index: int, *, seed: int, speech: bool = True) -> dict[str, Any]:
    """Make row `index` of the world `seed`; it depends on these two alone.

    Args:
        index: 0 or more.
        seed: 0 or more.
        speech: False leaves `audio` and the labels of the voice null.

    Returns:
        One value for each column of `SCHEMA`.

    Raises:
        SpeechUnavailable: `speech` is asked for and espeak-ng isn't installed.
        UsageError: `index` or `seed` is negative.
    """
    if index < 0 or seed < 0:
        raise UsageError(f"index and seed must be 0 or more; got index={index}, seed={seed}")
    streams = {stream: np.random.default_rng([seed, index, stream]) for stream in _Stream}
    scene = draw_scene(streams[_Stream.SCENE])
    layout = lay_out(scene, rng=streams[_Stream.LAYOUT])
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row["id"] = f"synth-{seed}-{index:09d}"
    row["image"] = encode_jpeg(render(scene, layout=layout, rng=streams[_Stream.PIXELS]))
    row |= _labels(scene, layout) | _words(scene, streams[_Stream.WORDS], streams[_Stream.PAIRS])
    row["turns"] = converse(scene, layout=layout, rng=streams[_Stream.DIALOGUE])
    said = state(scene, rng=streams[_Stream.STATEMENT])
    row |= {"statement": said.text, "truth": "true" if said.truth else "false"}
    if speech:
        said_aloud = utter(row["text"], voices=streams[_Stream.VOICE], sounds=streams[_Stream.SOUND])
        row |= {"audio": said_aloud.audio, **said_aloud.facts}
    return row


def _labels(scene: Scene, layout: Layout) -> dict[str, Any]:
    labels = {name: value for name, value in vars(scene).items() if name != "groups"} | vars(scene.main)
    second = vars(scene.other) if scene.other else dict.fromkeys(vars(scene.main)) | {"count": 0}
    return (
        labels | {f"other_{name}": value for name, value in second.items()} | {"objects": [*map(vars, layout.things)]}
    )


def _words(scene: Scene, words: np.random.Generator, pairs: np.random.Generator) -> dict[str, Any]:
    phrasings = words.permutation(NUM_PHRASINGS)[:CAPTIONS_PER_ROW].tolist()
    captions = {
        language: [caption(scene, language=language, phrasing=phrasing) for phrasing in phrasings]
        for language in LANGUAGES
    }
    false_scene, contradicted = contradict(scene, rng=pairs)
    free = [phrasing for phrasing in range(NUM_PHRASINGS) if phrasing != phrasings[0]]
    return {
        "text": captions["en"][0],
        "text_de": captions["de"][0],
        "text_fr": captions["fr"][0],
        **{f"captions_{language}": captions[language] for language in LANGUAGES},
        "similar": paraphrase(scene, phrasing=choose(pairs, free)),
        "contradiction": caption(false_scene, language="en", phrasing=choose(pairs, range(NUM_PHRASINGS))),
        "contradicted": contradicted,
    }
