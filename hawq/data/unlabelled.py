"""A folder of images without labels, in the form in which a data set stores its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hawq.data.image_files import ImageFiles
from hawq.data.listing import images_below


class UnlabelledImages:
    """Every image file below a folder, decoded on demand, in the natural order of their paths.

    Args:
        folder: with image files in it or in folders below it.
        like: one image of the data set that they stand beside. Where that is an array (H, W, 3), each file is cropped
            to its proportions and scaled to its size; else the transforms of the data set do what is needed.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without images.
    """

    def __init__(self, folder: Path, like: Any) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder: give one with image files")
        paths = images_below(str(folder))
        if not paths:
            raise ValueError(f"{folder} holds no image that Pillow reads: give a folder with image files")
        self._files = ImageFiles(paths, str(folder))
        self._shape = like.shape[:2] if isinstance(like, np.ndarray) else None  # (H, W)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        """One image: uint8 (H, W, 3), or a PIL image in RGB. Raises UserError where it cannot be decoded."""
        image = self._files[index]
        if self._shape is None:
            return image
        from PIL import ImageOps

        height, width = self._shape
        return np.array(ImageOps.fit(image, (width, height)), dtype=np.uint8)

    def identity(self) -> str:
        """SHA-256 (hexadecimal) over names and contents of all files."""
        return self._files.identity()
