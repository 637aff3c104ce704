"""From image files to 8-bit RGB: grey levels against the raw values, formats, and files that are not what they seem."""

import io

import numpy as np
import pytest
from PIL import Image

from hawq.data.decoding import decode, to_rgb
from hawq.data.listing import find_images
from hawq.errors import UserError

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)[:, ::5]  # 16-bit levels, the lowest and nearly the highest
EXPECTED = np.rint(RAMP / 257).astype(np.uint8)
DEEP = {  # ending, values as stored, the 8-bit levels they stand for
    "16-bit PNG": (".png", RAMP, EXPECTED),
    "16-bit PNG of dark values": (".png", RAMP % 300, np.rint(RAMP % 300 / 257)),
    "16-bit TIFF": (".tif", RAMP, EXPECTED),
    "big-endian TIFF": (".tif", RAMP.astype(">u2"), EXPECTED),
    "16-bit PGM": (".pgm", RAMP.astype(np.int32), EXPECTED),
    "16-bit JPEG 2000": (".jp2", RAMP, EXPECTED),
    "32-bit TIFF of 16-bit values": (".tif", RAMP.astype(np.int32), EXPECTED),
    "32-bit TIFF of 8-bit values": (".tif", EXPECTED.astype(np.int32), EXPECTED),
    "floats 0 to 1": (".tif", (RAMP / 65535).astype(np.float32), EXPECTED),
    "floats 0 to 255": (".tif", EXPECTED.astype(np.float32), EXPECTED),
    "floats 0 to 65535": (".tif", RAMP.astype(np.float32), EXPECTED),
    "PFM": (".pfm", (RAMP / 65535).astype(np.float32), EXPECTED),
}


@pytest.mark.parametrize(("ending", "values", "expected"), DEEP.values(), ids=DEEP)
def test_grey_levels_of_more_than_8_bits_are_kept(ending, values, expected, tmp_path):
    path = tmp_path / f"deep{ending}"
    Image.fromarray(values).save(path)
    made = np.asarray(decode(path, "deep"))
    assert made.shape == (*values.shape, 3)
    for channel in range(3):
        np.testing.assert_array_equal(made[..., channel], expected)


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 1e6], [np.nan, 1.0], [0.0, np.inf]])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_levels_of_no_known_range_are_refused(values, dtype, tmp_path):
    if dtype == np.int32 and not np.isfinite(values).all():
        pytest.skip("whole numbers are finite")
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([values], dtype)).save(path)
    with pytest.raises(UserError, match=r"^x.tif cannot be decoded: its grey levels are .* 0 to 1, 255 or 65535"):
        decode(path, "x.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_converted_as_pillow_does(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)).convert(mode)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


SAVED_APART = {"palm", "pdf", "eps", "ps", "mpo", "wmf", "emf", "grib", "bufr", "h5", "hdf", "msp", "xbm"}


def endings():
    """Every ending that this Pillow writes and reads, with its format."""
    formats = Image.registered_extensions()
    both = {ending: name for ending, name in formats.items() if name in Image.OPEN and name in Image.SAVE}
    return sorted((ending, name) for ending, name in both.items() if ending[1:] not in SAVED_APART)


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda ending: "", lambda ending: ".dat"])
def test_every_format_that_pillow_writes_is_found_and_read(change, tmp_path):
    side = 64
    image = Image.fromarray(np.full((side, side, 3), (200, 90, 30), np.uint8))
    (tmp_path / "cat").mkdir()
    written = set()
    for number, (ending, name) in enumerate(endings()):
        data = io.BytesIO()
        try:
            image.save(data, name)
        except (OSError, ValueError):  # it takes palettes only
            image.convert("P").save(data, name)
        if name in ("TGA", "ICO", "CUR") and change("x.y") in ("", ".dat"):
            continue  # they have no first bytes of their own
        path = tmp_path / "cat" / f"{number}{change(ending)}"
        path.write_bytes(data.getvalue())
        written.add(str(path))
    found = find_images(str(tmp_path), {"cat": 3})
    assert {path for path, label in found if label == 3} == written and len(written) > 20
    for path, _ in found:
        made = decode(path, path)
        assert made.mode == "RGB" and min(made.size) >= side, path  # ICNS holds several sizes
        np.testing.assert_allclose(np.asarray(made).mean((0, 1)), (200, 90, 30), atol=12, err_msg=path)


@pytest.mark.parametrize("most", [99, 40])  # Pillow warns, and refuses at twice as many
def test_a_decompression_bomb_is_told_in_one_sentence(most, monkeypatch):
    data = io.BytesIO()
    Image.new("RGB", (10, 10)).save(data, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(UserError, match=rf"^big.png has more than {most} pixels.*decompression bomb: remove it"):
        decode(data, "big.png")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF"])
def test_damaged_files_are_decoded_or_named_and_nothing_else(name):
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow has no {name}")
    rng = np.random.default_rng(0)
    saved = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(saved, name)
    whole = saved.getvalue()
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        if rng.random() < 0.5:
            del damaged[rng.integers(0, len(damaged)) :]
        for place in rng.integers(0, max(len(damaged), 1), 3):
            damaged[place : place + 1] = bytes([rng.integers(0, 256)])
        try:
            assert decode(io.BytesIO(bytes(damaged)), "x").mode == "RGB"
        except UserError as error:
            refused += 1
            assert str(error).startswith("x ") and "\n" not in str(error)
    assert refused
