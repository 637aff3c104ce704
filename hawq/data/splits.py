"""What a data set is: stored images and labels, split into training and test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor


class RawImages(Protocol):
    """Stored images by index: an array, or files that are decoded on demand."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One stored image: uint8 (H, W, 3), or a PIL image in RGB. Raises UserError where it cannot be decoded."""
        ...


@dataclass(frozen=True)
class Splits:
    """Stored images of one data set and their labels.

    Args:
        train_images, test_images: stored images; a data set that can only evaluate has no training images.
        train_labels, test_labels: int64 (N,), in 0 … num_classes − 1.
        num_classes: outputs of a network for this data set.

    Raises:
        ValueError: no test images, another number of labels than of images, or a label that is not a class.
    """

    train_images: RawImages
    train_labels: np.ndarray
    test_images: RawImages
    test_labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        if not len(self.test_images):
            raise ValueError("the data set has no test images: give at least one")
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if labels.shape != (len(images),):
                raise ValueError(f"{part}_labels have shape {labels.shape}, ({len(images)},) is needed")
            check_labels(f"{part}_labels", labels, self.num_classes)

    def identity(self) -> str:
        """SHA-256 (hexadecimal) over all images and labels; images in files are known by their own `identity()`."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            array = part if isinstance(part, np.ndarray) else np.array(part.identity())  # type: ignore[attr-defined]
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def identity_of(images: Any) -> str:
    """SHA-256 (hexadecimal) of an array (N, H, W, 3), or what images in files say of themselves."""
    if not isinstance(images, np.ndarray):
        return str(images.identity())
    return hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()


def check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raises ValueError unless `labels` (N,) are whole numbers in 0 … num_classes − 1."""
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} is {labels.dtype}: whole numbers are needed")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"{name} holds {wrong[0]}, which is not a class: give 0 to {num_classes - 1}")


class ImageData(Protocol):
    """A data set that a config can name."""

    @property
    def name(self) -> str:
        """The name that reports and packed files give."""
        ...

    @property
    def normalization(self) -> Normalization:
        """Used for a network that is trained from scratch; a checkpoint brings its own."""
        ...

    def open(self) -> Splits:
        """Images and labels. Raises FileNotFoundError or ValueError where they are missing or not as described."""
        ...

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[Any], Tensor]:
        """The function that turns a stored image into a network's input, float32 (3, H, W).

        Data sets whose images all have one size keep it, unless `preprocessing.fixed_size`; images of any size are
        brought to that of `preprocessing`.

        Args:
            preprocessing: side in pixels, share that is cropped, and interpolation, as the network expects them.
            normalization: mean and std for each channel of an RGB image in 0 … 1.
            augmented: apply the data set's random changes, drawn from the global generators of torch and `random`.
        """
        ...
