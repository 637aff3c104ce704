"""From a stored array to a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_FLIPPED = 0.5  # share of images that are mirrored


class ArrayTransform:
    """uint8 (H, W, 3) → float32 (3, H, W), normalised; (3, size, size) where the network's size is fixed.

    Args:
        preprocessing: the images are resized to its size, without a crop, only if that is fixed.
        normalization: mean and std for each channel of an image in 0 … 1.
        shift: pad by an eighth of each side and crop at random, which keeps the size.
        flip: mirror half of the images.
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
        self._flip = v2.RandomHorizontalFlip(_FLIPPED) if flip else None
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

    def whole_batch(self, images: np.ndarray, seeds: Sequence[int] | None, device: torch.device) -> Tensor:
        """uint8 (N, H, W, 3) → float32 (N, 3, H, W), normalised, on a device: what each image alone gives, in one pass.

        Args:
            images: N of one size.
            seeds: N, of the generator that each image's random changes are drawn from; None for no changes.
            device: where the pixels are computed.
        """
        import torch

        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # (N, 3, H, W)
        if seeds is not None and (self._shift or self._flip is not None):
            pixels = self._changed(pixels, seeds)
        return self._fixed(pixels).contiguous()  # type: ignore[no-any-return]

    def _changed(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W), each shifted and mirrored as its seed has it, read from the padded ones."""
        import torch

        height, width = pixels.shape[2:]
        margins = (height // 8, width // 8) if self._shift else (0, 0)
        drawn = torch.tensor([self._draw(seed, margins) for seed in seeds])  # (N, 3)
        top, left, mirrored = drawn.to(pixels.device).unsqueeze(-1).unbind(1)  # (N, 1) each
        rows = top + torch.arange(height, device=pixels.device)  # (N, H)
        columns = torch.arange(width, device=pixels.device)
        columns = left + torch.where(mirrored > 0, width - 1 - columns, columns)  # (N, W)
        padded = torch.nn.functional.pad(pixels, (margins[1], margins[1], margins[0], margins[0]))
        numbers = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        found = padded.permute(0, 2, 3, 1)[numbers, rows[:, :, None], columns[:, None, :]]  # (N, H, W, 3)
        return found.permute(0, 3, 1, 2)

    def _draw(self, seed: int, margins: tuple[int, int]) -> tuple[int, int, int]:
        """First row, first column and whether to mirror, as `RandomCrop` and `RandomHorizontalFlip` draw them."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        top, left = (
            int(torch.randint(0, 2 * margin + 1, (), generator=generator)) if margin else 0 for margin in margins
        )
        return top, left, int(self._flip is not None and float(torch.rand(1, generator=generator)) < _FLIPPED)

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
