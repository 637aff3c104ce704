"""From a stored array to a network's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor


class ArrayTransform:
    """uint8 (H, W, 3) → float32 (3, H, W), normalised; (3, size, size) where the network's size is fixed.

    Args:
        preprocessing: the images are resized to its size, without a crop, only if that is fixed.
        normalization: mean and std for each channel of an image in 0 … 1.
        shift: pad by an eighth of each side and crop at random, which keeps the size.
        flip: mirror with probability ½.
    """

    def __init__(
        self, preprocessing: Preprocessing, normalization: Normalization, *, shift: bool = False, flip: bool = False
    ) -> None:
        import torch
        from torchvision.transforms import v2

        self._shift, self._crops = shift, dict[tuple[int, int], Any]()
        sides = [preprocessing.size, preprocessing.size]
        resize = v2.Resize(sides, interpolation=_interpolation(preprocessing.interpolation), antialias=True)
        to_float = v2.ToDtype(torch.float32, scale=True)
        self._flip = v2.RandomHorizontalFlip() if flip else None
        self._fixed = v2.Compose(
            [
                *([resize] if preprocessing.fixed_size else []),
                to_float,
                v2.Normalize(list(normalization.mean), list(normalization.std)),
            ]
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """One image; random changes are drawn from torch's global generator."""
        import torch

        pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
        if self._shift:
            pixels = self._crop(image.shape[0], image.shape[1])(pixels)
        if self._flip is not None:
            pixels = self._flip(pixels)
        return self._fixed(pixels)  # type: ignore[no-any-return]

    def _crop(self, height: int, width: int) -> Any:
        """The random shift of images of one size."""
        from torchvision.transforms import v2

        if (height, width) not in self._crops:
            self._crops[height, width] = v2.RandomCrop((height, width), padding=[width // 8, height // 8])
        return self._crops[height, width]


def _interpolation(name: str) -> Any:
    """torchvision's mode; bicubic stands for those that it has for files only."""
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(name if name in ("nearest", "bilinear", "bicubic") else "bicubic")
