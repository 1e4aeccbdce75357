"""Is a file whole? Decoders take what there is of a cut file; these checks compare it with its own structure."""

import struct

from mmbm_core.errors import MediaError

_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what encoders that write to a pipe leave in the header
_MPEG_BITRATES_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG1_RATES_HZ = (44100, 48000, 32000)


def check_image_complete(data: bytes) -> None:
    """Raise `MediaError` where a PNG or GIF ends too early; the decoders of other formats see it themselves."""
    if data.startswith(b"\x89PNG") and data.rfind(b"IEND\xaeB`\x82") < 0:
        raise MediaError("truncated image: the last PNG chunk is missing")
    if data.startswith(b"GIF8"):
        _check_gif(data)


def _check_gif(data: bytes) -> None:
    """Walk blocks to the trailer (GIF89a, appendix B)."""
    at = 13 + _palette_bytes(data, 10)
    while at < len(data):
        kind = data[at]
        if kind == 0x3B:
            return
        if kind not in (0x21, 0x2C):  # padding between blocks
            at += 1
            continue
        at += 2 if kind == 0x21 else 11 + _palette_bytes(data, at + 9)
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    raise MediaError("truncated image: the GIF has no end")


def _palette_bytes(data: bytes, at: int) -> int:
    return 6 << (data[at] & 7) if at < len(data) and data[at] & 0x80 else 0


def check_audio_complete(data: bytes) -> None:
    """Raise `MediaError` where a WAV, AIFF, AU, OGG or MP3 ends before its own structure says.

    FLAC is checked by its decoder. Other containers pass.
    """
    if data[:4] in (b"RIFF", b"RIFX"):
        _check_chunks(data, "<I" if data[:4] == b"RIFF" else ">I", b"data")
    elif data[:4] == b"FORM":
        _check_chunks(data, ">I", b"SSND")
    elif data[:4] == b".snd":
        start, size = struct.unpack_from(">II", data.ljust(12, b"\0"), 4)
        if size not in _UNKNOWN_SIZES and start + size > len(data):
            raise MediaError(f"truncated sound: {len(data) - start} of {size} bytes of samples")
    elif data[:4] == b"OggS":
        _check_ogg(data)
    elif data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2):
        _check_mp3(data)


def _check_chunks(data: bytes, size_format: str, wanted: bytes) -> None:
    """Walk IFF chunks (id, size, padded body) to the one that holds samples."""
    at = 12
    while at + 8 <= len(data):
        name, (size,) = data[at : at + 4], struct.unpack_from(size_format, data, at + 4)
        if name == wanted:
            if size not in _UNKNOWN_SIZES and at + 8 + size > len(data):
                raise MediaError(f"truncated sound: {len(data) - at - 8} of {size} bytes of samples")
            return
        at += 8 + size + (size & 1)
    raise MediaError("truncated sound: no samples before the end of the file")


def _check_ogg(data: bytes) -> None:
    """The last page must be whole; a stream that was closed marks it as the end (RFC 3533)."""
    at = data.rfind(b"OggS")
    segments = data[at + 26] if at + 27 <= len(data) else 0
    table_end = at + 27 + segments
    if table_end > len(data) or table_end + sum(data[at + 27 : table_end]) > len(data) or not data[at + 5] & 4:
        raise MediaError("truncated sound: the last OGG page is missing")


def _check_mp3(data: bytes) -> None:
    """Walk MPEG audio layer III frames (ISO 11172-3, 2.4.1.3); the last one must be whole, and none be missing."""
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        at += 10 if data[5] & 0x10 else 0
    first, frames = at, 0
    while at + 4 <= len(data):
        length = _mp3_frame_bytes(data, at)
        if length is None:  # padding, APE or ID3v1 tags after the last frame, or an encoder's junk before the first
            if frames:
                return
            at = data.find(b"\xff", at + 1)
            if at < 0 or at - first > 65536:
                return
            continue
        at += length
        frames += 1
    if frames and (at > len(data) or frames < _mp3_frames(data, first)):
        raise MediaError("truncated sound: MP3 frames are missing")


def _mp3_frames(data: bytes, at: int) -> int:
    """Frames that the Xing or Info header promises; 0 where there is none."""
    tag = max(data.find(b"Xing", at, at + 64), data.find(b"Info", at, at + 64))
    if tag < 0 or tag + 12 > len(data) or not data[tag + 7] & 1:
        return 0
    return int.from_bytes(data[tag + 8 : tag + 12], "big")


def _mp3_frame_bytes(data: bytes, at: int) -> int | None:
    """Length of the layer III frame at `at`, or None where there is no frame header."""
    if data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version = (data[at + 1] >> 3) & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    bitrate_index, rate_index, padding = data[at + 2] >> 4, (data[at + 2] >> 2) & 3, (data[at + 2] >> 1) & 1
    if version == 1 or bitrate_index in (0, 15) or rate_index == 3:
        return None
    rate_hz = _MPEG1_RATES_HZ[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    bitrate_bps = _MPEG_BITRATES_KBPS[1 if version == 3 else 2][bitrate_index] * 1000
    return (144 if version == 3 else 72) * bitrate_bps // rate_hz + padding
