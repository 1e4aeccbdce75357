"""Pixels and waveforms against Pillow's and scipy's own; what is refused, and why."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy.signal import resample_poly

from mmbm_core.errors import MediaError
from mmbm_core.media import DEFAULT_LIMITS, Limits, check_text, decode_audio, decode_image, resample
from tests.samples import AUDIO_KINDS, all_files, audio_file, encoded, exif, fuzzed, image_file, picture, tone

RATE_HZ = 16_000


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scaled", [False, True])
def test_images_stand_upright(orientation: int, scaled: bool) -> None:
    upright = np.asarray(picture(width=64, height=48))
    # How a camera stores it: the inverse of what EXIF 2.32, 4.6.4 tells the viewer to do.
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](upright)
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", quality=95, exif=exif(orientation))
    pixels = decode_image(data, min_size_px=(12, 16) if scaled else None)
    if pixels.shape != upright.shape:  # decoded at a smaller scale, which only an upright JPEG is
        assert scaled and orientation == 1
        upright = np.asarray(Image.fromarray(upright).resize(pixels.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - upright).mean() < 6


def test_grey_and_indexed_images_become_rgb() -> None:
    grey = picture().convert("L")
    for mode in ("L", "1", "P"):
        image = grey.convert(mode)
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), expected)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    assert np.abs(decode_image(encoded(red, "JPEG"), min_size_px=(4, 4)).mean((0, 1)) - (220, 30, 40)).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_high_byte(kind: str) -> None:
    samples = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels = decode_image(encoded(Image.fromarray(samples), kind))
    np.testing.assert_array_equal(pixels, np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_float_images_are_scaled() -> None:
    samples = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert np.abs(decode_image(encoded(Image.fromarray(samples), "TIFF"))[..., 0] - samples * 255).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    keyed = Image.new("RGB", (8, 8), (10, 20, 30))
    grey = Image.new("LA", (8, 8), (0, 128))
    white = [255] * 3
    assert decode_image(encoded(clear, "PNG"))[0, 0].tolist() == white
    assert decode_image(encoded(clear, "WEBP", lossless=True))[0, 0].tolist() == white
    assert decode_image(encoded(indexed, "PNG", transparency=0))[0, 0].tolist() == white
    assert decode_image(encoded(keyed, "PNG", transparency=(10, 20, 30)))[0, 0].tolist() == white
    assert decode_image(encoded(keyed, "PNG", transparency=(1, 2, 3)))[0, 0].tolist() == [10, 20, 30]
    for image in (half, grey):
        assert abs(int(decode_image(encoded(image, "PNG"))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_show_their_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (20, 10), (250, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 250))
    pixels = decode_image(encoded(first, kind, save_all=True, append_images=[second, first], duration=50))
    assert np.abs(pixels.mean((0, 1)) - (250, 0, 0)).max() < 8


def test_scaled_decoding_stays_above_the_size_asked_for() -> None:
    data = image_file("JPEG", width=640, height=480)
    assert decode_image(data, min_size_px=(120, 120)).shape == (120, 160, 3)
    assert decode_image(data, min_size_px=(121, 120)).shape == (240, 320, 3)
    assert decode_image(data).shape == (480, 640, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"quality": 5},
        {"restart_marker_blocks": 2}, {"exif": exif(1)}, {"dpi": (72, 72)},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("size", [(32, 32), (201, 133), (1, 1), (7, 300)])
def test_jpegs_have_the_pixels_that_pillow_gives(options: dict[str, Any], size: tuple[int, int]) -> None:
    for mode in ("RGB", "L"):
        data = encoded(picture(width=size[0], height=size[1]).convert(mode), "JPEG", **options)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_all_decoding_refuses_the_files_that_pillow_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = []
    for data in fuzzed([image_file("JPEG"), image_file("JPEG", exif=exif(1))], 200, seed=5):
        seen = []
        for size, plain in ((None, True), ((16, 16), True), (None, False)):
            with monkeypatch.context() as patched:
                if not plain:
                    patched.setattr("mmbm_core.media._decode_plain_jpeg", lambda *_: None)
                try:
                    pixels = decode_image(data, min_size_px=size)
                    seen.append(pixels if size is None else True)
                except MediaError:
                    seen.append(False)
        whole, scaled, pillow = (each is not False for each in seen)
        assert whole == scaled == pillow
        assert not whole or np.array_equal(seen[0], seen[2])
        verdicts.append(whole)
    assert set(verdicts) == {True, False}


def _png_of(width: int, height: int) -> bytes:
    """A black PNG of a few kilobytes, without the pixels in this process."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_decoded() -> None:
    for width, height in ((12_000, 12_000), (100_000, 1_000)):
        with pytest.raises(MediaError, match=f"{width}x{height} pixels is over the limit of 64000000"):
            decode_image(_png_of(width, height))
    silence = audio_file("FLAC", np.zeros(3601 * 8000, np.int16), rate_hz=8000)
    assert len(silence) < 200_000
    with pytest.raises(MediaError, match="audio of 3601 s is over the limit of 3600 s"):
        decode_audio(silence, rate_hz=RATE_HZ)
    with pytest.raises(MediaError, match="over the limit of 1 s"):
        decode_audio(audio_file("MP3", tone(seconds=3)), rate_hz=RATE_HZ, limits=Limits(audio_s=1))
    with pytest.raises(MediaError, match="over the limit of 100"):
        decode_image(image_file(), limits=Limits(media_bytes=100))


MP4 = struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + bytes(2000)


def test_what_is_not_the_claimed_kind_is_refused() -> None:
    for data in (b"", MP4, b"<svg></svg>", b"%PDF-1.7 ", b"%!PS-Adobe", bytes(5000), audio_file("WAV")):
        with pytest.raises(MediaError):
            decode_image(data)
    for data in (b"", MP4, bytes(5000), image_file("PNG"), image_file("JPEG"), b"RIFF", b"ID3"):
        with pytest.raises(MediaError):
            decode_audio(data, rate_hz=RATE_HZ)
    with pytest.raises(MediaError, match="zero bytes"):
        decode_image(b"")


@pytest.mark.parametrize("kind", all_files())
def test_cut_files_are_refused_wherever_they_are_cut(kind: str) -> None:
    data = all_files()[kind]
    audio = kind in AUDIO_KINDS
    step = max(1, len(data) // 60)
    cuts = [*range(0, len(data), step), *range(len(data) - 12, len(data))]
    if kind == "MP3":
        cuts = [cut for cut in cuts if cut < len(data) - 150]  # the last frame may be the encoder's padding
    accepted = []
    for cut in cuts:
        try:
            decode_audio(data[:cut], rate_hz=RATE_HZ) if audio else decode_image(data[:cut])
            accepted.append(cut)
        except MediaError:
            pass
    assert accepted == []


def test_au_says_that_it_is_cut() -> None:
    with pytest.raises(MediaError, match="truncated"):
        decode_audio(audio_file("AU")[:-500], rate_hz=RATE_HZ)


def test_a_message_holds_no_bytes_of_the_file() -> None:
    with pytest.raises(MediaError) as caught:
        decode_image(b"secret-secret-secret")
    assert "secret" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_sounds_keep_their_pitch_and_length(kind: str, rate_hz: int) -> None:
    wave = decode_audio(audio_file(kind, tone(seconds=1, rate_hz=rate_hz), rate_hz=rate_hz), rate_hz=RATE_HZ)
    assert abs(len(wave) / RATE_HZ - 1) < (0.08 if kind == "MP3" else 0.001)
    spectrum = np.abs(np.fft.rfft(wave[2000:14000] * np.hanning(12000)))
    assert abs(np.argmax(spectrum) * RATE_HZ / 12000 - 440) < 2
    assert abs(np.abs(wave[2000:14000]).max() - 0.5) < 0.06


@pytest.mark.parametrize("source_hz", [8_000, 22_050, 44_100, 48_000, 44_099])
def test_resampling_agrees_with_another_filter(source_hz: int) -> None:
    random = np.random.default_rng(0)
    t = np.arange(source_hz) / source_hz
    wave = sum(random.uniform(0.1, 0.3) * np.sin(2 * np.pi * f * t + random.uniform(0, 6)) for f in (220, 950, 2400))
    ours = resample(wave.astype(np.float32), source_hz=source_hz, rate_hz=RATE_HZ)
    theirs = resample_poly(wave, RATE_HZ, source_hz)
    middle = slice(1000, -1000)
    assert abs(len(ours) - len(theirs)) <= 1
    assert np.abs(ours[: len(theirs)][middle] - theirs[: len(ours)][middle]).max() < 0.01


def test_an_absurd_rate_costs_no_gigabytes() -> None:
    wave = resample(np.ones(1000, np.float32), source_hz=767_999, rate_hz=RATE_HZ)
    assert len(wave) == 21
    for rate_hz in (999, 800_000):
        with pytest.raises(MediaError, match="sample rate"):
            resample(np.ones(1000, np.float32), source_hz=rate_hz, rate_hz=RATE_HZ)


def test_channels_are_averaged() -> None:
    left, right = tone(pitch_hz=300), tone(pitch_hz=900)
    wave = decode_audio(audio_file("WAV", np.stack([left, right], 1), subtype="FLOAT"), rate_hz=RATE_HZ)
    np.testing.assert_allclose(wave, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"])
def test_sample_formats_of_wav(subtype: str) -> None:
    wave = decode_audio(audio_file("WAV", tone(), subtype=subtype), rate_hz=RATE_HZ)
    coarse = subtype in ("PCM_U8", "ULAW", "IMA_ADPCM")
    settled = slice(20, len(tone()))  # ADPCM's step size takes some samples to adapt
    np.testing.assert_allclose(wave[settled], tone()[settled], atol=0.05 if coarse else 1e-4)


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_long_sounds_are_read_in_blocks_without_a_seam(kind: str) -> None:
    data = audio_file(kind, np.random.default_rng(0).uniform(-0.3, 0.3, (44_100 * 15, 2)), rate_hz=44_100)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(decode_audio(data, rate_hz=44_100), expected.mean(1))


def test_only_the_beginning_is_kept_and_equals_that_of_the_whole() -> None:
    random = np.random.default_rng(0)
    data = audio_file("FLAC", random.uniform(-0.5, 0.5, 44_100 * 40), rate_hz=44_100)
    whole = decode_audio(data, rate_hz=RATE_HZ)
    head = decode_audio(data, rate_hz=RATE_HZ, keep_s=2.0)
    assert 2 * RATE_HZ < len(head) < len(whole)
    np.testing.assert_allclose(head[: 2 * RATE_HZ], whole[: 2 * RATE_HZ], atol=1e-6)
    with pytest.raises(MediaError):
        decode_audio(data[: len(data) * 3 // 4], rate_hz=RATE_HZ, keep_s=2.0)


def test_flac_of_unknown_length_is_read_to_its_end() -> None:
    data = bytearray(audio_file("FLAC", tone(seconds=2)))
    data[21] &= 0xF0  # STREAMINFO's number of samples: 36 bits from the middle of byte 21
    data[22:26] = bytes(4)
    assert len(decode_audio(bytes(data), rate_hz=RATE_HZ)) == 2 * RATE_HZ


def test_sounds_that_hold_nothing_usable() -> None:
    with pytest.raises(MediaError, match="no samples"):
        decode_audio(audio_file("WAV", np.empty(0, np.float32)), rate_hz=RATE_HZ)
    with pytest.raises(MediaError, match="not finite"):
        decode_audio(audio_file("WAV", np.array([0.0, np.nan]), subtype="FLOAT"), rate_hz=RATE_HZ)


def test_wav_of_a_pipe_has_no_size_and_is_read() -> None:
    data = bytearray(audio_file("WAV"))
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    expected, _ = soundfile.read(io.BytesIO(audio_file("WAV")), dtype="float32")
    np.testing.assert_array_equal(decode_audio(bytes(data), rate_hz=RATE_HZ), expected)


def test_texts_over_the_limit_or_without_valid_unicode() -> None:
    check_text("é" * 10)
    for text in ("nul \0 inside", "\u202eright to left", "👩‍👩‍👧‍👦" * 50, "e" + "\u0301" * 500, "\ufeff"):
        check_text(text)
    with pytest.raises(MediaError, match="20 bytes is over the limit of 19"):
        check_text("é" * 10, limits=Limits(text_bytes=19))
    with pytest.raises(MediaError, match="Unicode"):
        check_text("lone \ud800")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_damaged_files_are_decoded_or_refused(seed: int) -> None:
    """Whatever else came out of a decoder would fail this test, or end its process."""
    outcomes = {"decoded": 0, "refused": 0}
    for data in fuzzed(list(all_files().values()), 1000 if not seed else 10_000, seed=seed):
        for decode in (
            lambda data: decode_image(data, limits=DEFAULT_LIMITS),
            lambda data: decode_image(data, min_size_px=(16, 16)),
            lambda data: decode_audio(data, rate_hz=RATE_HZ),
        ):
            try:
                decode(data)
                outcomes["decoded"] += 1
            except MediaError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 300
