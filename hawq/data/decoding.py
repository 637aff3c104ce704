"""From the bytes of an image file to 8-bit RGB, with all its grey levels."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def decode(file: Any, name: str) -> Image:
    """An image in RGB, 8 bits for each channel.

    Args:
        file: path or open binary file.
        name: what messages call it.

    Raises:
        UserError: not an image, damaged, truncated, too large (PIL's MAX_IMAGE_PIXELS), or grey levels of an unknown
            range.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return to_rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be a decompression bomb: remove it, "
            "or store it smaller"
        ) from error
    except Exception as error:  # plugins of Pillow raise almost anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be decoded: {reason}; repair or remove it") from error


def to_rgb(image: Image) -> Image:
    """An image in RGB, 8 bits for each channel; grey levels of more bits are rounded to 256 levels, not cut off.

    Levels of 16 bits are divided by 257. Whole numbers of 32 bits and floats, whose range no file states, are taken for
    0 … 1 (floats only), 0 … 255 or 0 … 65535, the first of these that holds all of them.

    Raises:
        ValueError: grey levels outside of these ranges, or NaN.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image.convert("RGB")
    from PIL import Image

    levels = np.asarray(image, np.float64)  # (H, W)
    unit = np.clip(np.rint(levels * (255 / _white(image.mode, image.format, levels))), 0, 255)
    return Image.fromarray(unit.astype(np.uint8)).convert("RGB")


def _white(mode: str, format_name: str | None, levels: np.ndarray) -> int:
    """The level that means white."""
    if mode.startswith("I;") or (mode == "I" and format_name in ("PPM", "PNG")):  # Pillow scales a PGM to 16 bits
        return 65535
    least, most = float(levels.min(initial=0)), float(levels.max(initial=0))
    whites = (1, 255, 65535) if mode == "F" else (255, 65535)
    white = next((white for white in whites if most <= white), None)
    if white is None or not least >= 0:  # NaN is not either
        raise ValueError(f"its grey levels are {least:g} to {most:g}, and 0 to 1, 255 or 65535 is needed")
    return white
