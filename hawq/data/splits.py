"""What a data set is: stored images and labels, cut into training and test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from hawq.records import Normalization, Preprocessing


class RawImages(Protocol):
    """Stored images by index: an array of them, or files that are decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """Stored images of one data set with labels (N,); a data set that only evaluates has no training images."""

    train_images: RawImages
    train_labels: np.ndarray
    test_images: RawImages
    test_labels: np.ndarray
    num_classes: int

    def identity(self) -> str:
        """SHA-256 over images (of files: their names and sizes) and labels."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            array = part if isinstance(part, np.ndarray) else np.array(part.identity())  # type: ignore[attr-defined]
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class ImageData(Protocol):
    """A data set that a config names."""

    @property
    def name(self) -> str: ...

    @property
    def normalization(self) -> Normalization:
        """Used when a network is trained from scratch; a checkpoint brings its own."""
        ...

    def open(self) -> Splits:
        """Raises FileNotFoundError or ValueError when the data is not there or not as described."""
        ...

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[Any], Tensor]:
        """What makes a network's input, float32 (3, H, W), of a stored image; with random changes if `augmented`.

        Data sets of one size keep it; of pictures of any size, `preprocessing` says what the network wants.
        """
        ...
