"""What the stages work on: data, network and blocks of a run, and the images that each task takes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hawq.experiment.artifacts import Store
from hawq.records import Block, FloatPart, Normalization

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from hawq.data import ImageData, Images, Splits, TrainBatches
    from hawq.data.splits import RawImages
    from hawq.data.unlabelled import StoredImages
    from hawq.models import FloatModel
    from hawq.progress import Progress


@dataclass(frozen=True)
class Teacher:
    """What fine-tuning learns from in place of the float network, and what it is made of, JSON-ready, for keys."""

    network: nn.Module
    facts: list[dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """Data, network and blocks of a run, all there and fitting each other; nothing has been computed yet.

    `judging` are the images, and their labels where there are any, that a search judges plans on; None for those that
    the network is trained on.
    """

    dataset: ImageData
    splits: Splits
    data_facts: dict[str, Any]
    model_name: str
    model: FloatModel
    normalization: Normalization
    blocks: tuple[Block, ...]
    float_parts: tuple[FloatPart, ...]
    overhead_bytes: int
    about: dict[str, Any]
    device: torch.device
    workers: int
    store: Store
    teacher: Teacher | None = None
    unlabelled: StoredImages | None = None
    judging: tuple[RawImages, np.ndarray | None] | None = None

    @property
    def network(self) -> nn.Module:
        """The float network, on its device."""
        return self.model.network

    def prepare_image(self, *, augmented: bool = False) -> Callable[[Any], Tensor]:
        """The function that makes a network's input (3, H, W) of an image of the data set."""
        return self.dataset.prepare(self.model.preprocessing, self.normalization, augmented=augmented)

    def train_images(self, *, augmented: bool) -> Images:
        """Training images as network inputs (3, H, W) with labels; `augmented` ones are asked for by (index, seed)."""
        from hawq.data import Images

        augment = self.prepare_image(augmented=True) if augmented else None
        return Images(self.splits.train_images, self.splits.train_labels, self.prepare_image(), augment)

    def test_images(self) -> Images:
        """Test images as network inputs (3, H, W) with labels."""
        from hawq.data import Images

        return Images(self.splits.test_images, self.splits.test_labels, self.prepare_image())

    def as_inputs(self, stored: RawImages | StoredImages, labels: np.ndarray | None = None) -> Images:
        """Other images, stored as the data set stores its own, as network inputs (3, H, W); unknown labels are 0."""
        import numpy as np

        from hawq.data import Images

        return Images(stored, np.zeros(len(stored), np.int64) if labels is None else labels, self.prepare_image())

    def training_data(self, batch_size: int, seed: int) -> TrainBatches:
        """Augmented batches of `batch_size` training images, a function of seed and step."""
        from hawq.data import TrainBatches

        return TrainBatches(self.train_images(augmented=True), batch_size, seed, self.device, workers=self.workers)

    def fixed_batches(self, num_samples: int, batch_size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """`num_samples` training images drawn by the seed, not augmented, in batches; this process' share of them."""
        from hawq.data import fixed_batches, sample_indices
        from hawq.distributed import rank, shard, world_size

        images = self.train_images(augmented=False)
        indices = sample_indices(len(images), num_samples, seed)
        own = indices[shard(len(indices), rank(), world_size())]
        return fixed_batches(images, own, batch_size, self.device)

    def calibration(self, num_samples: int, batch_size: int, seed: int) -> list[Tensor]:
        """Inputs of `num_samples` training images, not augmented, the same for every process."""
        from hawq.data import fixed_batches, sample_indices

        images = self.train_images(augmented=False)
        indices = sample_indices(len(images), num_samples, seed)
        return [inputs for inputs, _ in fixed_batches(images, indices, batch_size, self.device)]

    def score_images(self, which: str, num_samples: int, batch_size: int, seed: int) -> list[Tensor]:
        """Inputs that kl is measured on (`Analysis.images`), in batches; this process' share of them."""
        from hawq.data import fixed_batches, sample_indices
        from hawq.distributed import rank, shard, world_size
        from hawq.scoring import TEST, TRAIN

        if which == TRAIN:
            return [inputs for inputs, _ in self.fixed_batches(num_samples, batch_size, seed)]
        if which == TEST:
            images, indices = self.test_images(), self.held_out(num_samples, seed)
        else:
            assert self.unlabelled is not None
            images = self.as_inputs(self.unlabelled)
            indices = sample_indices(len(images), num_samples, seed)
        own = indices[shard(len(indices), rank(), world_size())]
        return [inputs for inputs, _ in fixed_batches(images, own, batch_size, self.device)]

    def held_out(self, num_samples: int, seed: int) -> list[int]:
        """Indices of the test images that scores may look at, without labels: at most half of them."""
        from hawq.data import sample_indices

        count = len(self.splits.test_images)
        return sample_indices(count, count, seed)[::-1][: min(num_samples, count // 2)]

    def example(self) -> Tensor:
        """The first test image, (1, 3, H, W)."""
        from hawq.data import fixed_batches

        return fixed_batches(self.test_images(), [0], 1, self.device)[0][0]

    def test_accuracy(
        self, network: nn.Module, num_images: int | None = None, progress: Progress | None = None, title: str = ""
    ) -> float:
        """Accuracy in percent on the first `num_images` test images, or on all."""
        from hawq.evaluation import percent

        chosen, labels = self.test_classes(network, num_images, progress, title)
        return percent(chosen == labels)

    def test_classes(
        self, network: nn.Module, num_images: int | None = None, progress: Progress | None = None, title: str = ""
    ) -> tuple[Tensor, Tensor]:
        """The class that each of the first `num_images` test images, or of all, gets, and its label: (N,) each."""
        from torch.utils.data import Subset

        from hawq.evaluation import classes_on
        from hawq.progress import SILENT

        count = min(num_images or len(self.splits.test_images), len(self.splits.test_images))
        images = Subset(self.test_images(), range(count))
        return classes_on(network, images, self.device, self.workers, progress or SILENT, title)
