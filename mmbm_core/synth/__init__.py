"""The synthetic world: seeded rows of picture, speech, captions and dialogue whose truth is known.

Row `index` depends on `(seed, index, world)` alone, so any worker can make any row, in any order, and get the same one.
The bytes are equal on one machine and installation; another CPU may round a waveform sample differently.

Example:
    row = make_row(0, seed=7)
    row["text"], row["image"], row["audio"]     # the English caption, JPEG bytes, FLAC bytes
"""

from mmbm_core.synth.row import SCHEMA, WORLD_VERSION, make_row, schema_of
from mmbm_core.synth.speech import SpeechUnavailable
from mmbm_core.synth.world import BUILT_IN, World

__all__ = ["BUILT_IN", "SCHEMA", "WORLD_VERSION", "SpeechUnavailable", "World", "make_row", "schema_of"]
