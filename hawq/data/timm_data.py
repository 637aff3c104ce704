"""Any data set that timm reads, say from Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hawq.checks import check_range
from hawq.components import component
from hawq.data.image_files import IMAGENET, read_with_timm, timm_transform
from hawq.data.splits import Splits
from hawq.records import Normalization, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_MAX_CLASSES = 1_000_000


@component("dataset/timm", not_in_key=("path",))
@dataclass(frozen=True)
class TimmData:
    """Any data set that timm's `create_dataset` reads, say hfds/uoft-cs/cifar100 (Hugging Face).

    A stream (wds/, hfids/) is read into memory once, because batches are drawn by index.

    Args:
        name: name with timm's prefix.
        num_classes: outputs of the network, 2 to 1,000,000.
        path: folder of the data or of its cache, or None.
        train_split, test_split: names of the splits there.
        augment: random crop and horizontal flip of training images.

    Raises:
        ValueError: `num_classes` out of range.
    """

    name: str
    num_classes: int
    path: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    augment: bool = True
    normalization = IMAGENET

    def __post_init__(self) -> None:
        check_range("num_classes", self.num_classes, least=2, most=_MAX_CLASSES)

    def prepare(
        self, preprocessing: Preprocessing, normalization: Normalization, *, augmented: bool = False
    ) -> Callable[[Image], Tensor]:
        """RGB image → float32 (3, size, size), by timm's transforms; see `ImageData.prepare`."""
        return timm_transform(preprocessing, normalization, augmented=augmented and self.augment)

    def open(self) -> Splits:
        """Images and labels of both splits. Raises ValueError for a name that timm cannot read, or other labels."""
        train, test = (read_with_timm(self.name, self.path, split) for split in (self.train_split, self.test_split))
        return Splits(*train, *test, self.num_classes)
