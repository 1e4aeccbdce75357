"""Sound preparation shared by every audio encoder."""

from collections.abc import Sequence

from mmbm_core.encoders.base import Item
from mmbm_core.errors import MediaError
from mmbm_core.media import Limits, decode_audio


def prepare_sounds(
    values: Sequence[bytes], *, rate_hz: int, max_s: float, limits: Limits, min_samples: int = 1
) -> list[Item | MediaError]:
    """Decode each to a mono waveform (S,) at `rate_hz`, cut at `max_s`; cost is its number of samples.

    A sound of fewer than `min_samples` is padded with zeros up to them.
    """
    return [_prepare_one(value, rate_hz, max_s, limits, min_samples) for value in values]


def _prepare_one(value: bytes, rate_hz: int, max_s: float, limits: Limits, min_samples: int) -> Item | MediaError:
    import numpy as np

    try:
        waveform = decode_audio(value, rate_hz=rate_hz, limits=limits, keep_s=max_s)
    except MediaError as error:
        return error
    most = round(max_s * rate_hz)
    kept = waveform[:most]
    if len(kept) < min_samples:
        kept = np.pad(kept, (0, min_samples - len(kept)))
    return Item(kept, cost=len(kept), cut=len(waveform) > most)
