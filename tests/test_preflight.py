"""What would make a Hessian meaningless is refused or told, with its remedy."""

import warnings

import pytest
import torch
from networks import NETWORKS, build, cut, samples
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import Fisher, GradientNorm
from hawq.errors import UserError
from hawq.sensitivity import analyze

BATCH = samples(8)


def network(*middle):
    """An MLP with something in its middle, in eval mode."""
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 4), *middle, nn.Linear(4, 3)).double().eval()


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class DropoutAtTheEnd(nn.Module):
    """The usual mistake: a functional dropout that nobody switches off."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        return F.dropout(self.body(x))


class SineOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].cos()


class Once(nn.Module):
    def forward(self, x):
        return SineOnce.apply(x)


class Tokens(nn.Module):
    """Whole numbers in, through something that has one derivative only."""

    def __init__(self):
        super().__init__()
        self.embedding, self.once, self.head = nn.Embedding(5, 4), Once(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.once(self.embedding(x)).mean(1))


def shuffled():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*samples(40)), 10, shuffle=True)


def tokens():
    return [(torch.arange(20).view(4, 5) % 5, torch.tensor([0, 1, 2, 0]))]


def weight_normed():
    model = network()
    nn.utils.parametrizations.weight_norm(model[1])
    return model


REFUSED = {
    "batches that change": (network, shuffled, "batches change between two passes.*switch it off"),
    "random module": (lambda: network(nn.Tanh(), Noise()), None, "module 3 gives another output.*in eval mode"),
    "random after the last module": (DropoutAtTheEnd, None, "another output.*in eval mode"),
    "half precision": (lambda: network().half(), None, r"1.weight is torch.float16.*give model.float\(\)"),
    "bfloat16": (lambda: network().bfloat16(), None, r"torch.bfloat16.*give model.float\(\)"),
    "one derivative only": (lambda: network(Once()), None, "module 2 has no second derivative.*solver=fisher"),
    "one derivative only, at the end": (lambda: nn.Sequential(network(), Once()), None, "module 1 has no second"),
    "one derivative only, of tokens": (
        lambda: nn.Sequential(Tokens()).eval(),
        tokens,
        "module 0.once has no second derivative",
    ),
    "weights that are computed": (weight_normed, None, "1.weight"),
    "a loss that is not finite": (network, lambda: [(BATCH[0] * float("nan"), BATCH[1])], "finite"),
}


@pytest.mark.parametrize(("made", "batches", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_sentence(made, batches, message):
    torch.manual_seed(0)
    model = made()
    with warnings.catch_warnings(), pytest.raises(UserError, match=message) as caught:
        warnings.simplefilter("ignore")
        analyze(model, find_blocks(model), [BATCH] if batches is None else batches())
    assert len(str(caught.value).splitlines()) == 1


def spread(factors):
    """Samples whose logits are 1, 10, 1000 … times as far apart as usual."""
    factors = torch.tensor(factors, dtype=torch.float64).view(-1, 1, 1, 1)
    images = samples(len(factors))[0] * factors
    return lambda: [(images, network_without_bias()(images).argmax(1))]


def network_without_bias():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 3, bias=False)).double().eval()


def without_statistics():
    model = build("residual")
    model.unit.bn1 = nn.BatchNorm2d(4, track_running_stats=False).double()
    return model.eval()


WARNED = {
    "training mode": (lambda: network().train(), None, "in training mode; it is analysed in eval mode"),
    "no running statistics": (without_statistics, None, "unit.bn1 has no running statistics.*all samples in one batch"),
    "one weight twice": (lambda: build("tied"), None, "unit.first.weight and unit.second.weight are one weight"),
    "flat loss": (network_without_bias, spread([1e4] * 8), r"loss \(.*\) is nearly flat at every sample"),
    "memorised data": (
        network_without_bias,
        spread([1e4] * 59 + [0.01]),
        "curvature rests on about 1 of 60 samples.*more samples",
    ),
}


@pytest.mark.parametrize(("made", "batches", "message"), WARNED.values(), ids=WARNED)
def test_told_and_analysed(made, batches, message):
    model = made()
    with pytest.warns(UserWarning, match=message) as heard:
        analyze(model, find_blocks(model), [BATCH] if batches is None else batches())
    assert len(heard) == 1


def test_autocast_is_told_and_off():
    model = build("residual", torch.float32)
    batches = [samples(8, torch.float32)]
    expected = analyze(model, find_blocks(model), batches)
    with pytest.warns(UserWarning, match="autocast is on; it is off during"), torch.autocast("cpu", torch.bfloat16):
        found = analyze(model, find_blocks(model), batches)
    for row, other in zip(expected.rows, found.rows, strict=True):
        assert other.eigenvalue.value == pytest.approx(row.eigenvalue.value, rel=1e-6)


CLEAN = {
    **{name: lambda name=name: build(name) for name in NETWORKS if name != "tied"},
    "frozen": lambda: build("mlp").requires_grad_(False),
    "frozen in part": lambda: network(nn.Linear(4, 4).requires_grad_(False)),
}


@pytest.mark.parametrize("made", CLEAN.values(), ids=CLEAN)
@pytest.mark.parametrize("batches", [lambda: [BATCH], lambda: cut(BATCH, (5, 3)), lambda: iter([BATCH])])
def test_a_clean_network_gives_no_warning(made, batches):
    """Also from batches that can be gone through only once."""
    model = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analyze(model, find_blocks(model), batches())


@pytest.mark.parametrize("solver", [Fisher(), GradientNorm()], ids=lambda solver: solver.name)
def test_solvers_that_need_no_second_derivative_take_what_has_none(solver):
    """As the refusal advises."""
    model = network(Once())
    assert analyze(model, find_blocks(model), [BATCH], solver=solver).rows
