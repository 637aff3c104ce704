"""The optimiser: what decays, and that any of them can be stopped and taken up."""

from dataclasses import replace

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import Fresh
from torch.nn import functional as F
from tuning import BATCHES, CALIBRATION, prepared, same_state

from hawq.finetuning import FineTuning, finetune
from hawq.finetuning.optimizer import make_optimizer
from hawq.quantization import LSQ, PACT, DoReFa, Uniform, quantize


@pytest.mark.parametrize("quantizer", [LSQ(), PACT(), DoReFa(), Uniform()], ids=lambda quantizer: quantizer.name)
def test_decay_acts_on_weights_alone(quantizer):
    model, sensitivity, plan = prepared()
    network = quantize(model, sensitivity.blocks, plan, CALIBRATION, quantizer)
    decayed, plain, *more = make_optimizer(network, "adamw", 0.1, 0.0, 0.3).param_groups
    learned = (
        more[0] if more else {"params": [], "weight_decay": 0.0}
    )  # groups of a float network stay the two they were
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert sorted(names[id(parameter)] for parameter in decayed["params"]) == [
        "body.0.parametrizations.weight.original",
        "body.3.parametrizations.weight.original",
        "head.1.parametrizations.weight.original",
    ]
    assert [group["weight_decay"] for group in (decayed, plain, learned)] == [0.3, 0.0, 0.0]
    assert {names[id(parameter)] for parameter in learned["params"]} == {
        name for name in names.values() if name.endswith((".scale", ".alpha"))
    }
    assert len(decayed["params"]) + len(plain["params"]) + len(learned["params"]) == len(names)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_what_quantisers_learn_has_a_rate_of_its_own(scale):
    """One step of plain SGD moves steps by `scale` times what they move otherwise, weights as far as ever."""

    def moved(factor):
        settings = FineTuning(max_steps=1, lr=0.01, momentum=0.0, quantizer_lr_scale=factor, reestimate_batches=0)
        start = finetune(*prepared(), Fresh(BATCHES), CALIBRATION, replace(settings, max_steps=0), seed=1)[0]
        end = finetune(*prepared(), Fresh(BATCHES), CALIBRATION, settings, seed=1)[0]
        before = dict(start.named_parameters())
        return {name: (value - before[name]).detach() for name, value in end.named_parameters()}

    scaled, plain = moved(scale), moved(1.0)
    for name, way in scaled.items():
        factor = scale if name.endswith(".scale") else 1.0
        torch.testing.assert_close(way, factor * plain[name], rtol=1e-3, atol=1e-7)
    assert any(float(way.abs().max()) > 1e-6 for name, way in plain.items() if name.endswith(".scale"))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_nesterovs(momentum):
    """Against the rule of PyTorch's documentation: v ← µv + g, w ← w − lr (g + µv)."""
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = make_optimizer(layer, "sgd", 0.1, momentum, 0.01)
    weight, velocity = layer.weight.detach().clone(), torch.zeros(2, 4)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(layer(inputs), torch.ones(3, 2)).backward()
        gradient = layer.weight.grad + 0.01 * weight
        velocity = momentum * velocity + gradient
        weight = weight - 0.1 * (gradient + momentum * velocity)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_ends_in_the_same_weights(optimizer):
    settings = FineTuning(
        epochs=10,
        max_steps=12,
        lr=0.01,
        checkpoint_every=2,
        optimizer=optimizer,
        schedule="linear",
        warmup_steps=4,
        order="descending",
    )

    def tune(**options):
        return finetune(*prepared(), Fresh(BATCHES), CALIBRATION, settings, seed=1, **options)

    network, history = tune()
    assert [row["lr"] for row in history[:5]] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    for killed_at in (4, 10):
        checkpoint = MemoryCheckpoint()
        with pytest.raises(Killed):
            tune(checkpoint=checkpoint, on_row=kill_after(killed_at))
        resumed, resumed_history = tune(checkpoint=checkpoint)
        assert same_state(resumed, network)
        assert resumed_history == history
