"""The analysis, against explicit Hessians, and after interruptions."""

import copy

import pytest
import torch
from memory import Killed, MemoryCheckpoint, kill_after
from networks import NETWORKS, build, cut, explicit_gauss_newton, explicit_hessian, samples
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import OPERATORS, Fisher, GradientNorm, Hutchinson, Lanczos, LowRank, PowerIteration, RandomScore
from hawq.quantization import LSQ, Uniform, weight_errors
from hawq.sensitivity import Analysis, analyze, block_weights, measure_curvature

BATCH = samples(7)
BATCHES = cut(BATCH, (4, 3))
TIGHT = PowerIteration(1e-5, 3000, "residual")


@pytest.mark.parametrize("name", ["residual", "tied", "depthwise"])
def test_agrees_with_the_explicit_hessian(name):
    model = build(name)
    sensitivity = analyze(model, find_blocks(model), BATCHES, solver=TIGHT)
    for row in sensitivity.rows:
        spectrum = torch.linalg.eigvalsh(explicit_hessian(model, row.block, BATCH, F.cross_entropy))
        assert row.eigenvalue.value == pytest.approx(float(spectrum[-1]), rel=1e-5)
        assert row.eigenvalue.converged
    assert sensitivity.loss == pytest.approx(F.cross_entropy(model(BATCH[0]), BATCH[1]).item())
    assert (sensitivity.num_samples, sensitivity.solver) == (7, "power")


@pytest.mark.parametrize("quantizer", [None, Uniform("minmax")], ids=str)
def test_weight_errors_are_those_of_the_quantizer(quantizer):
    model = build("tied")
    sensitivity = analyze(model, find_blocks(model), BATCHES, quantizer=quantizer)
    for row in sensitivity.rows:
        assert row.weight_errors == weight_errors(block_weights(model, row.block), quantizer or LSQ())
    assert len(block_weights(model, sensitivity.row("unit").block)) == 1


def test_blocks_are_traced_when_they_have_not_been():
    model = build("residual")
    expected = find_blocks(model, BATCH[0][:1])
    assert analyze(model, find_blocks(model), BATCHES).blocks == expected


def test_the_seed_decides_the_result():
    model = build("branches")
    solver = PowerIteration()
    first, second, other = (analyze(model, find_blocks(model), BATCHES, solver=solver, seed=s) for s in (4, 4, 5))
    assert first == second
    assert first.rows[0].eigenvalue != other.rows[0].eigenvalue


@pytest.mark.parametrize("name", NETWORKS)
def test_the_order_of_blocks_does_not_matter(name):
    model = build(name)
    blocks = find_blocks(model)
    forwards, backwards = (analyze(model, given, BATCHES) for given in (blocks, blocks[::-1]))
    assert forwards.rows == backwards.rows[::-1]


def killed_at(solver, update):
    """The same solver, whose process ends at its n-th update, on the subset or on all samples."""

    tick = kill_after(update)

    def fragile(solver):
        class Fragile(type(solver)):
            def update(self, state, reading):
                tick()
                return super().update(state, reading)

            def sharper(self):
                return fragile(super().sharper())

            def for_subset(self):
                return fragile(super().for_subset())

        copied = copy.copy(solver)
        object.__setattr__(copied, "__class__", Fragile)
        return copied

    return fragile(solver)


RESUMED = {
    "lanczos": Lanczos(1e-8, 60),
    "both ends": Lanczos(1e-6, 60, both_ends=True),
    "gauss-newton": Lanczos(1e-12, 60, curvature="ggn"),
    "power": PowerIteration(1e-5, 25),
    "power from the subset": PowerIteration(1e-5, 25, start_from="subset"),
    "trace": Hutchinson(1e-3, 30),
    "deflated trace": Hutchinson(1e-3, 30, rank=5),
    "fisher": Fisher(1e-3, 20),
    "rows, then products": LowRank(tolerance=1e-6, rows=4),
    "trace by rows": LowRank("trace", 0.05, 4, curvature="hessian"),
}


@pytest.mark.parametrize(("update", "batches"), [(1, BATCHES), (7, [BATCH])], ids=["1st", "7th"])
@pytest.mark.parametrize("solver", RESUMED.values(), ids=RESUMED)
def test_a_killed_analysis_goes_on(solver, update, batches):
    model, checkpoint = build("residual"), MemoryCheckpoint()
    blocks = find_blocks(model)
    expected = measure_curvature(model, blocks, batches, F.cross_entropy, solver, seed=0)
    with pytest.raises(Killed):
        measure_curvature(model, blocks, batches, F.cross_entropy, killed_at(solver, update), 0, checkpoint, 0.0)
    assert (checkpoint.num_saved > 0) == (update > len(blocks))
    assert measure_curvature(model, blocks, batches, F.cross_entropy, solver, 0, checkpoint, 0.0) == expected


class LastWords(MemoryCheckpoint):
    """The process ends when the second state of a phase was stored, the first of a subset: one may be all it needs."""

    def __init__(self, opening):
        super().__init__()
        self.opening, self.tick = opening, kill_after(1 if opening == "subset" else 2)

    def save(self, state):
        super().save(state)
        if state["opening"] == self.opening:
            self.tick()


WARM = [name for name, solver in RESUMED.items() if getattr(solver, "start_from", "random") == "subset"]
ROWS = [name for name, solver in RESUMED.items() if solver.reads == "rows"]
PRODUCTS = [name for name in RESUMED if name != "trace by rows"]
PHASES = {"": PRODUCTS, "subset": WARM, "rows": ROWS}


@pytest.mark.parametrize(("opening", "name"), [(o, n) for o, names in PHASES.items() for n in names], ids=str)
def test_an_analysis_killed_in_any_phase_goes_on(name, opening):
    model, checkpoint, heard = build("residual"), LastWords(opening), []
    arguments = (model, find_blocks(model), BATCHES, F.cross_entropy, RESUMED[name], 0)
    expected = measure_curvature(*arguments)
    with pytest.raises(Killed):
        measure_curvature(*arguments, checkpoint, 0.0)
    result = measure_curvature(*arguments, checkpoint, 0.0, lambda block, estimate: heard.append(block))
    assert result == expected
    assert len(heard) == len(set(heard)) <= 3


@pytest.mark.parametrize("solver", [GradientNorm(), RandomScore()], ids=lambda solver: solver.name)
def test_scores_without_curvature_are_proxies(solver):
    model = build("residual")
    found = analyze(model, find_blocks(model), BATCHES, solver=solver)
    assert all(
        row.eigenvalue is row.trace is None
        and row.curvature("proxy") is row.proxy
        and found.rank("proxy", row.block) >= 0
        for row in found.rows
    )


def test_the_curvature_by_gauss_newton_is_named_and_its_own():
    model = build("residual")
    hessian, ggn = (analyze(model, find_blocks(model), BATCHES, solver=Lanczos(curvature=c)) for c in OPERATORS)
    assert (hessian.solver, ggn.solver) == ("lanczos", "lanczos (ggn)")
    spectrum = torch.linalg.eigvalsh(explicit_gauss_newton(model, ggn.blocks[1], BATCH, F.cross_entropy))
    assert ggn.rows[1].eigenvalue.value == pytest.approx(float(spectrum[-1]), rel=0.01)
    assert ggn.rows[1].eigenvalue.value != pytest.approx(hessian.rows[1].eigenvalue.value, rel=0.01)


@pytest.mark.parametrize("start", ["random", "gradient", "subset"])
def test_where_it_begins_changes_the_cost_and_not_the_result(start):
    model = build("residual")
    for row in analyze(model, find_blocks(model), BATCHES, solver=Lanczos(1e-9, 200, start_from=start)).rows:
        spectrum = torch.linalg.eigvalsh(explicit_hessian(model, row.block, BATCH, F.cross_entropy))
        assert row.eigenvalue.value == pytest.approx(float(spectrum[-1]), rel=1e-8)


def test_a_finished_block_is_not_measured_again():
    model, checkpoint, heard = build("residual"), MemoryCheckpoint(), []
    arguments = (model, find_blocks(model), BATCHES, F.cross_entropy, PowerIteration(1e-4, 200), 0, checkpoint, 0.0)
    expected = measure_curvature(*arguments[:6])
    with pytest.raises(Killed):
        measure_curvature(*arguments, on_estimate=kill_after(2))
    result = measure_curvature(*arguments, on_estimate=lambda name, estimate: heard.append(name))
    assert result == expected
    assert len(heard) == len(set(heard)) == 2


def test_curvature_that_is_not_finite_is_refused():
    """The loss is zero, the derivative of its root is 0/0."""
    model = build("mlp")
    with pytest.raises(ValueError, match="finite"):
        analyze(
            model, find_blocks(model), [BATCH], lambda outputs, _: (outputs - outputs.detach()).square().sum().sqrt()
        )


@pytest.mark.parametrize("values", [{"num_samples": 0}, {"batch_size": 0}, {"save_every_seconds": -1.0}])
def test_values_out_of_range(values):
    (key,) = values
    with pytest.raises(ValueError, match=f"^{key}={values[key]}"):
        Analysis(**values)


def test_errors_relative_to_each_layer():
    """‖ΔW‖²/‖W‖² summed over the layers of a block, each quantised by itself; a layer of zeros has none."""
    model = build("residual")
    with torch.no_grad():
        next(layer for layer in model.modules() if isinstance(layer, nn.Linear)).weight.zero_()
    quantizer = Uniform("minmax", per_channel=False)
    found = analyze(model, find_blocks(model), BATCHES, solver=GradientNorm(), quantizer=quantizer)
    layers = dict(model.named_modules())
    for block in found.blocks:
        for bits in (2, 4, 8):
            expected = 0.0
            for weight in (layers[name].weight.detach().double() for name in block.layers):
                step = weight.abs().max() / (2 ** (bits - 1) - 1)
                error = ((weight / step).round() * step - weight).square().sum()
                expected += float(error / weight.square().sum()) if step else 0.0
            predicted = found.predicted("relative_error", block, "weights", bits)
            assert predicted.value == pytest.approx(expected, rel=1e-4, abs=1e-12) and predicted.error == 0
