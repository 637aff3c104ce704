"""What a network is made of, and how its inputs are prepared."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BITS = 32
BIT_WIDTHS = tuple(range(1, 9))  # of quantised weights and activations
IMAGE_BITS = 8  # the network's input is an 8-bit image, whatever the first block's activation bits are


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

    name: str
    layers: tuple[str, ...]
    num_weights: int
    macs: int | None = None
    num_activations: int | None = None
    image_layers: tuple[str, ...] = ()
    tie_group: str | None = None
    fixed_bits: int | None = None


@dataclass(frozen=True)
class FloatPart:
    """What stays float in a quantised network: a weight outside all blocks, or products of two activations.

    Args:
        name: of the parameter or the module.
        num_weights: elements of the weight.
        macs: products per sample that no layer of a block makes.
    """

    name: str
    num_weights: int = 0
    macs: int = 0

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.num_weights:,} weights)" if self.num_weights else f"{self.name} ({self.macs:,} MACs)"
        )


@dataclass(frozen=True)
class Normalization:
    """How a network's inputs are normalised: (x − mean) / std for each channel of an RGB image in 0 … 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes a network's input.

    The shorter side is resized to size / crop pixels with `interpolation`, then the central size × size pixels are cut
    out. Data sets whose images all have one size keep it, unless `fixed_size` says that the network takes no other size
    than `size`, or that the user chose it: then they are resized to it.
    """

    size: int
    crop: float
    interpolation: str
    fixed_size: bool = False
