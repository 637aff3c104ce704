"""Forward passes that begin in the middle, against whole ones."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS, build, samples
from torch import Tensor, nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.replay import prefixes

INPUTS = samples(4)[0]


class Functional(nn.Module):
    """Glue in place between modules, one module called twice, a skip over everything, tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.pair, self.head = nn.BatchNorm2d(3), Pair(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        early = F.relu(self.norm(self.first(x)), inplace=True)
        y = self.again(self.again(early))
        y += 1
        left, right, count = self.pair(y)
        return self.head((left * count + right + early).mean((2, 3)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        return self.left(x), self.right(x), 2


class Hidden(nn.Module):
    """Uses a weight without calling its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x.mean((2, 3)), self.last.weight)
        return self.last(self.second(self.first(x)))


class NoGradient(nn.Module):
    """A branch that the graph does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.mean((2, 3)))
        return self.last(y.detach().round())


OWN = {"functional": Functional, "hidden": Hidden, "no gradient": NoGradient}


def made(name: str) -> nn.Module:
    if name in NETWORKS:
        return build(name)
    torch.manual_seed(0)
    return OWN[name]().double().eval()


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize("name", [*NETWORKS, *OWN])
@torch.no_grad()
def test_a_changed_block_gives_the_outputs_of_a_whole_pass(name, granularity):
    model = made(name)
    if name == "tied" and granularity == "layer":
        granularity = ["unit", "stem", "head"]
    blocks = find_blocks(model, INPUTS[:1], granularity=granularity)
    found = prefixes(model, {block.name: block.layers for block in blocks}, INPUTS[:2])
    before = copy.deepcopy(model.state_dict())
    earlier = None
    for block in blocks:
        prefix = found[block.name]
        memory = prefix.remember(INPUTS, earlier if earlier and earlier[0].cut <= prefix.cut else None)
        changed = copy.deepcopy(model)
        for layer in block.layers:
            for network in (changed, model):
                network.get_submodule(layer).weight.mul_(0.5)
        for _ in range(2):  # the memory is not used up
            torch.testing.assert_close(prefix.run(INPUTS, memory), changed(INPUTS), rtol=0, atol=0)
        model.load_state_dict(before)
        earlier = prefix, memory
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "skipping"),
    [
        ("residual", {"stem": False, "unit": True, "head": True}),
        ("functional", {"first": False, "again": True, "pair": True, "head": True}),
        ("hidden", {"first": False, "second": True, "last": False}),  # `last` is read before anything is called
        ("no gradient", {"first": False, "last": False}),
    ],
)
def test_what_is_skipped(name, skipping):
    model = made(name)
    groups = {block.name: block.layers for block in find_blocks(model, INPUTS[:1])}
    assert {key: prefix.skips for key, prefix in prefixes(model, groups, INPUTS[:2]).items()} == skipping


def test_only_what_is_read_later_is_kept():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    prefix = prefixes(model, {"last": ["4"]}, torch.randn(2, 8))["last"]
    with torch.no_grad():
        memory = prefix.remember(torch.randn(100, 8))
    assert 100 * 8 * 4 <= prefix.bytes_of(memory) < 2 * 100 * 8 * 4


def test_a_module_that_cannot_be_replaced_leaves_the_whole_pass():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), nn.Linear(3, 3))
    prefix = prefixes(model, {"last": ["1"]}, torch.randn(2, 3))["last"]
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(prefix.run(inputs, prefix.remember(inputs)), model(inputs))
