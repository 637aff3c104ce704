"""Accuracy, against counting by hand."""

import pytest
import torch
from networks import Residual, cut, samples
from torch import nn

from hawq.evaluation import accuracy

OUTPUTS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(("labels", "percent"), [([0, 1, 0, 1], 100), ([1, 1, 0, 1], 75), ([1, 0, 1, 0], 0)])
@pytest.mark.parametrize("sizes", [(4,), (3, 1)], ids=str)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_share_of_right_answers_in_percent(labels, percent, sizes, kind):
    batches = cut((OUTPUTS, torch.tensor(labels, dtype=kind)), sizes)
    assert accuracy(nn.Identity(), batches, 4) == percent


def test_modes_and_buffers_are_put_back():
    model = Residual().train()
    model.unit.bn1.eval()  # frozen by the user
    modes = {name: module.training for name, module in model.named_modules()}
    mean = model.unit.bn2.running_mean.clone()
    accuracy(model, [samples(4, torch.float32)], 4)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(model.unit.bn2.running_mean, mean)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        accuracy(nn.Identity(), [], 0)
