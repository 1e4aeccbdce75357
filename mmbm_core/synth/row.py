"""A scene as one row: picture, speech, captions, dialogue, pairs, a statement, and every factor as a label."""

from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa

from mmbm_core.errors import UsageError
from mmbm_core.synth.dialogue import converse
from mmbm_core.synth.draw import encode_jpeg, render
from mmbm_core.synth.grammar import caption, contradict, paraphrase
from mmbm_core.synth.scene import Layout, Scene, choose, draw_scene, lay_out
from mmbm_core.synth.statement import state
from mmbm_core.synth.utterance import utter
from mmbm_core.synth.world import BUILT_IN, LANGUAGES, World

WORLD_VERSION = 2
"""Raised whenever the same seed and index give another row than before."""
CAPTIONS_PER_ROW = 3

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
"""Of a world with words in all languages."""


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


def schema_of(world: World) -> pa.Schema:
    """Columns of a world's rows: those of `SCHEMA`, without the languages that it has no words for."""
    silent = {f"{name}_{language}" for name in ("text", "captions") for language in {*LANGUAGES} - {*world.languages}}
    return pa.schema([field for field in SCHEMA if field.name not in silent])


def make_row(index: int, *, seed: int, speech: bool = True, world: World = BUILT_IN) -> dict[str, Any]:
    """Make row `index` of a world; it depends on the seed, the index and the world alone.

    Args:
        index: 0 or more.
        seed: 0 or more.
        speech: False leaves `audio` and the labels of the voice null.

    Returns:
        One value for each column of `schema_of(world)`.

    Raises:
        SpeechUnavailable: `speech` is asked for and espeak-ng isn't installed.
        UsageError: `index` or `seed` is negative.
    """
    if index < 0 or seed < 0:
        raise UsageError(f"index and seed must be 0 or more; got index={index}, seed={seed}")
    streams = {stream: np.random.default_rng([seed, index, stream]) for stream in _Stream}
    scene = draw_scene(streams[_Stream.SCENE], world=world)
    layout = lay_out(scene, rng=streams[_Stream.LAYOUT])
    row: dict[str, Any] = dict.fromkeys(schema_of(world).names)
    row["id"] = f"synth-{seed}-{index:09d}"
    row["image"] = encode_jpeg(render(scene, layout=layout, world=world, rng=streams[_Stream.PIXELS]))
    row |= _labels(scene, layout) | _words(scene, world, streams[_Stream.WORDS], streams[_Stream.PAIRS])
    row["turns"] = converse(scene, layout=layout, world=world, rng=streams[_Stream.DIALOGUE])
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


def _words(scene: Scene, world: World, words: np.random.Generator, pairs: np.random.Generator) -> dict[str, Any]:
    num_phrasings = len(world.captions)
    phrasings = words.permutation(num_phrasings)[:CAPTIONS_PER_ROW].tolist()
    captions = {
        language: [caption(scene, world=world, language=language, phrasing=phrasing) for phrasing in phrasings]
        for language in world.languages
    }
    false_scene, contradicted = contradict(scene, world=world, rng=pairs)
    free = [phrasing for phrasing in range(num_phrasings) if phrasing != phrasings[0]]
    similar = paraphrase(scene, world=world, phrasing=choose(pairs, free))
    false_phrasing = choose(pairs, range(num_phrasings))
    return {
        **{"text" if language == "en" else f"text_{language}": said[0] for language, said in captions.items()},
        **{f"captions_{language}": said for language, said in captions.items()},
        "similar": similar,
        "contradiction": caption(false_scene, world=world, language="en", phrasing=false_phrasing),
        "contradicted": contradicted,
    }
