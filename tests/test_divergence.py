"""Numbers that stop being finite: told with the step and the block, and nothing is overwritten."""

import pytest
import torch
from memory import MemoryCheckpoint
from networks import Fresh
from torch import nn
from tuning import BATCHES, CALIBRATION, prepared

from hawq.errors import UserError
from hawq.finetuning import FineTuning, Training, finetune, fit
from hawq.records import Phase

JOINT = {"epochs": 10, "max_steps": 9, "order": "joint", "checkpoint_every": 2}


def tune(spoil, **options):
    """Fine-tuning in which `spoil` acts on the network after step 5."""
    checkpoint, networks = MemoryCheckpoint(), []

    def on_row(row):
        if row["step"] == 5:
            with torch.no_grad():
                spoil(networks[-1])

    settings = FineTuning(**(JOINT | options), evaluations=9)
    try:
        finetune(
            *prepared(),
            Fresh(BATCHES),
            CALIBRATION,
            settings,
            seed=1,
            evaluate=lambda network: networks.append(network) or 0.0,
            on_row=on_row,
            checkpoint=checkpoint,
        )
    finally:
        assert checkpoint.num_saved == 2
        assert checkpoint.load()["step"] == 4
        assert all(
            value.isfinite().all() for value in checkpoint.load()["model"].values() if hasattr(value, "isfinite")
        )


def weight(network, layer):
    return dict(network.named_modules())[layer].parametrizations.weight.original


@pytest.mark.parametrize("options", [{}, {"accumulate": 3, "precision": "bfloat16"}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["body.0", "body.3", "head.1"])
def test_broken_weights_are_named(layer, value, options):
    culprit = rf"{layer}\.parametrizations\.weight\.original \(block {layer}\) is not finite"
    with pytest.raises(UserError, match=rf"fine-tuning diverged at step 6 .*: {culprit}"):
        tune(lambda network: weight(network, layer)[0].fill_(value), **options)


def test_output_is_named_with_the_block_it_follows():
    with pytest.raises(UserError, match=r"step 6 .*: the output of body\.1 \(block body\.0\) is not finite"):
        tune(lambda network: setattr(network.body[1], "eps", float("nan")))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradient_alone_is_named(clip_norm):
    """√ at zero: a finite output with an infinite derivative."""

    class Root(nn.Module):
        def forward(self, x):
            return (x * 0).abs().sqrt() + x

    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), Root(), nn.Linear(4, 3))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=r"training diverged at step 1 .*: the gradient of 1\.weight is not finite"):
        fit(model, [Phase((), (), 3, 0.1, 0.0)], Fresh(BATCHES), Training(clip_norm=clip_norm), seed=0)
    assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))


def test_loss_alone_is_named():
    with pytest.raises(UserError, match=r"step 1 .*: the loss of finite outputs is not finite; lower"):
        finetune(
            *prepared(),
            Fresh(BATCHES),
            CALIBRATION,
            FineTuning(**JOINT),
            loss=lambda outputs, targets: outputs.sum() * float("nan"),
        )
