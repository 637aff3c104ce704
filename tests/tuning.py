"""A small network ready to be fine-tuned, and when two networks are the same."""

import torch
from networks import Dropped, batches_of

from hawq.allocation import UniformBits
from hawq.blocks import find_blocks
from hawq.quantization import LSQ, weight_errors
from hawq.records import BlockSensitivity, Estimate, Sensitivity
from hawq.sensitivity import block_weights

BATCHES = batches_of(3, 8)
CALIBRATION = [images for images, _ in BATCHES]


def prepared():
    """(network, sensitivity, plan) with λ = 1, 2, 3."""
    torch.manual_seed(5)
    model = Dropped()
    rows = [
        BlockSensitivity(block, Estimate(1.0 + i, 0.0, 1, True), weight_errors(block_weights(model, block), LSQ()))
        for i, block in enumerate(find_blocks(model, CALIBRATION[0]))
    ]
    sensitivity = Sensitivity(tuple(rows), "power", 1, 0.0)
    return model, sensitivity, UniformBits(3, 4, 4).allocate(sensitivity)


def same_state(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        for name, value in left.items()
    )
