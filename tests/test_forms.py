"""Batches, outputs and losses of other forms: each is analysed, or refused in one true sentence before any work."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import explicit_hessian
from torch import Tensor, nn
from torch.nn import functional as F

import hawq
from hawq.blocks import find_blocks
from hawq.curvature import LowRank, forms
from hawq.errors import UserError

IMAGES = torch.randn(12, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
SOLVERS = [hawq.Lanczos(), hawq.PowerIteration(), hawq.Hutchinson(max_products=40), hawq.Fisher(max_draws=4), LowRank()]


def network(outputs: int = 3) -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    return nn.Sequential(*layers).double().eval()


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)[:, 0]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": lambda outputs, targets: F.mse_loss(outputs, targets.double()),
    "binary": lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, (targets > 0).double()),
}


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_one_output_per_sample(solver: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model, batch = Squeezed(), (IMAGES, LABELS)
    blocks = find_blocks(model)
    found = hawq.analyze(model, blocks, [batch], loss, solver=solver)
    if isinstance(solver, hawq.Lanczos):
        for row in found.rows:
            true = float(torch.linalg.eigvalsh(explicit_hessian(model, row.block, batch, loss))[-1])
            assert row.eigenvalue is not None and row.eigenvalue.value == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("memorised", [False, True], ids=["even", "few samples curve"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.filterwarnings("ignore:.*curvature (rests|comes)")
def test_images_of_several_sizes(solver: Any, memorised: bool) -> None:
    """No samples of different size are put together, and the result is that of all."""
    torch.manual_seed(0)
    model = network().double()
    sizes = ((6, 6), (8, 7), (5, 9))
    batches = [(torch.randn(4, 3, *size, dtype=torch.float64), LABELS[:4]) for size in sizes]
    if memorised:
        with torch.no_grad():
            model[4].weight *= 200
        batches = [(images, model(images).argmax(1)) for images, _ in batches]
        batches[1][1][2] = (batches[1][1][2] + 1) % 3
    blocks = find_blocks(model)
    found = hawq.analyze(model, blocks, batches, solver=solver)
    assert found.num_samples == 12 and len(found.rows) == 2
    for row in found.rows:
        if row.eigenvalue is not None and row.eigenvalue.confidence == 0.99:
            hessian = sum(explicit_hessian(model, row.block, batch, F.cross_entropy) for batch in batches) / 3
            assert abs(row.eigenvalue.value - float(torch.linalg.eigvalsh(hessian)[-1])) <= row.eigenvalue.error


def test_a_network_that_changes_its_input() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images.mul_(0.5))

    model, images = InPlace(), IMAGES.clone()
    found = hawq.analyze(model, find_blocks(model), [(images, LABELS)])
    assert torch.equal(images, IMAGES)
    half = hawq.analyze(model.body, find_blocks(model.body), [(IMAGES * 0.5, LABELS)])
    pairs = zip(found.rows, half.rows, strict=True)
    assert all(a.eigenvalue and b.eigenvalue and a.eigenvalue.value == b.eigenvalue.value for a, b in pairs)


BATCHES: dict[str, tuple[Callable[[], Any], str]] = {
    "mapping": (lambda: [{"image": IMAGES, "label": LABELS}], "a mapping of image, label: give pairs"),
    "three": (lambda: [(IMAGES, LABELS, LABELS)], "a tuple of 3: give pairs"),
    "inputs alone": (lambda: [IMAGES], "give pairs of"),
    "targets in a mapping": (lambda: [(IMAGES, {"label": LABELS})], "targets of a batch are a mapping of label"),
    "fewer targets": (lambda: [(IMAGES, LABELS[:5])], r"targets \(5,\): give one each"),
    "no sample": (lambda: [(IMAGES[:0], LABELS[:0])], "give at least one sample"),
    "no end": (lambda: itertools.repeat((IMAGES[:1], LABELS[:1])), "have not ended after"),
}


@pytest.mark.parametrize(("batches", "complaint"), BATCHES.values(), ids=BATCHES)
def test_batches_of_another_form_are_refused(batches: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        hawq.analyze(network(), find_blocks(network()), batches())
    assert len(str(caught.value).splitlines()) == 1


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.body(images)}


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_outputs_in_a_mapping(solver: Any) -> None:
    def analysed() -> Any:
        return hawq.analyze(
            Mapped(),
            find_blocks(Mapped()),
            [(IMAGES, LABELS)],
            lambda o, t: F.cross_entropy(o["out"], t),
            solver=solver,
        )

    if isinstance(solver, (LowRank, hawq.Fisher)):
        with pytest.raises(UserError, match="output is a mapping of out: this solver needs one tensor"):
            analysed()
    else:
        assert len(analysed().rows) == 2


def test_a_loss_of_each_sample_is_refused() -> None:
    with pytest.raises(UserError, match=r"the loss gives a value of shape \(2,\): one number is needed"):
        hawq.analyze(network(), find_blocks(network()), [(IMAGES, LABELS)], nn.CrossEntropyLoss(reduction="none"))


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "detached": lambda features: features.detach(),
    "rounded": lambda features: (features * 4).round().detach(),
    "highest": lambda features: F.one_hot(features.argmax(1), 4).double(),
    "rounded, with a slope of zero": lambda features: (features * 4).round(),
    "rounded to decimals": lambda features: features.round(decimals=1),
    "floored": lambda features: (features * 4).floor() + (features * 4).ceil() + (features * 4).trunc(),
    "signs": lambda features: features.sign() + features.sgn(),
    "whole multiples": lambda features: torch.div(features, 0.1, rounding_mode="floor"),
    "counted": lambda features: (features > 0).double() + (features * 4).long(),
}


class Probe(nn.Module):
    """A backbone that no gradient reaches, under a head that learns."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(network())[:4])
        self.head = nn.Linear(4, 3).double()
        self._cut = cut

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self._cut(self.backbone(images)))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_block_without_gradient_is_named_or_keeps_its_width(cut: Callable[[Tensor], Tensor], solver: Any) -> None:
    model = Probe(cut).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blocks = find_blocks(model)
    with pytest.raises(UserError, match=r"no gradient of the loss reaches backbone.0 \(no_grad"):
        hawq.analyze(model, blocks, [(IMAGES, LABELS)], solver=solver)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    found = hawq.analyze(model, blocks, [(IMAGES, LABELS)], solver=solver, detached_bits=7)
    plan = hawq.allocate(found, hawq.UniformBits(weights=3, ends=3))
    assert {name: bits.weight_bits for name, bits in plan.precisions.items()} == {"backbone.0": 7, "head": 3}


def test_chance_needs_no_gradient() -> None:
    model = Probe(CUTS["detached"]).eval()
    assert len(hawq.analyze(model, find_blocks(model), [(IMAGES, LABELS)], solver=hawq.RandomScore()).rows) == 2


class Twofold(nn.Module):
    """A unit whose first layer no gradient reaches, and whose second has one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).round())


def test_a_layer_without_gradient_is_named_and_its_block_keeps_its_width() -> None:
    model = nn.Sequential(Twofold(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()
    blocks = find_blocks(model)
    assert [block.layers for block in blocks] == [("0.first", "0.second"), ("3",)]
    with pytest.raises(UserError, match=r"reaches 0.first \(no_grad"):
        hawq.analyze(model, blocks, [(IMAGES, LABELS)])
    found = hawq.analyze(model, blocks, [(IMAGES, LABELS)], detached_bits=6)
    assert [row.block.fixed_bits for row in found.rows] == [6, None]


def test_a_straight_through_estimator_is_a_gradient() -> None:
    model = Probe(lambda features: 8 * features + ((8 * features).round() - 8 * features).detach()).eval()
    assert all(row.eigenvalue.value > 0 for row in hawq.analyze(model, find_blocks(model), [(IMAGES, LABELS)]).rows)


@pytest.mark.parametrize("solver", [hawq.Lanczos(), hawq.Hutchinson(max_products=40)], ids=lambda s: type(s).__name__)
def test_blocks_without_curvature_are_told(solver: Any) -> None:
    """A head that starts at zero: nothing below it moves the loss."""
    model = network()
    nn.init.zeros_(model[4].weight)
    with pytest.warns(UserWarning, match=r"^0 have no curvature at the analysed samples") as heard:
        found = hawq.analyze(model, find_blocks(model), [(IMAGES, LABELS)], solver=solver)
    main = found.rows[0].eigenvalue or found.rows[0].trace
    assert len(heard) == 1 and main is not None and main.value == 0.0
    linear = nn.Sequential(*network(), nn.Linear(3, 3)).double()
    nn.init.zeros_(linear[5].weight)
    with pytest.warns(UserWarning, match="^no block has any curvature"):
        hawq.analyze(linear, find_blocks(linear)[:2], [(IMAGES, LABELS)], solver=solver)


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return itertools.repeat((torch.zeros(3, 6, 6), 0))


def test_a_loader_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_MOST_BYTES", 2**20)
    loader = torch.utils.data.DataLoader(Endless(), batch_size=64)
    with pytest.raises(
        UserError, match=r"have not ended after 3. \(1 MiB\): give those to analyse, say list\(itertools"
    ):
        hawq.analyze(network().float(), find_blocks(network()), loader)
    long = [(IMAGES, LABELS)] * 60  # as many bytes, but a list
    assert len(forms.fixed(long)) == 60
