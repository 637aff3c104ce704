"""What a network is made of, and how its inputs are prepared."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.records.kinds import Amount, Bits, Count, Name, Number, PositiveCount


@dataclass(frozen=True)
class Block:
    """A group of layers that share one bit-width: a residual unit, the stem, the classifier, or a single layer.

    Args:
        name: unique within the network; the only key that joins records.
        layers: qualified names of the layers.
        num_weights: convolution and linear weights (no biases, no batch norm).
        macs: multiply–accumulates per sample; None until a forward pass was traced.
        num_activations: elements entering the layers per sample, the input image not counted; None until traced.
        image_layers: the layers that read the network's input itself.
        tie_group: blocks with the same group get the same bits.
        fixed_bits: bit-width of the weights that no allocator changes.
    """

    name: Name
    layers: tuple[Name, ...]
    num_weights: PositiveCount
    macs: Count | None = None
    num_activations: Count | None = None
    image_layers: tuple[Name, ...] = ()
    tie_group: Name | None = None
    fixed_bits: Bits | None = None


@dataclass(frozen=True)
class FloatPart:
    """What stays float in a quantised network: a weight outside all blocks, or products of two activations.

    Args:
        name: of the parameter or the module.
        num_weights: elements of the weight.
        macs: products per sample that no layer of a block makes.
    """

    name: Name
    num_weights: Count = 0
    macs: Count = 0

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.num_weights:,} weights)" if self.num_weights else f"{self.name} ({self.macs:,} MACs)"
        )


@dataclass(frozen=True)
class Normalization:
    """How a network's inputs are normalised: (x − mean) / std for each channel of an RGB image in 0 … 1."""

    mean: tuple[Number, ...]
    std: tuple[Amount, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes a network's input.

    The shorter side is resized to size / crop pixels with `interpolation`, then the central size × size pixels are cut
    out. Data sets whose images all have one size keep it, unless `fixed_size` says that the network takes no other size
    than `size`, or that the user chose it: then they are resized to it.
    """

    size: PositiveCount
    crop: Amount
    interpolation: Name
    fixed_size: bool = False
