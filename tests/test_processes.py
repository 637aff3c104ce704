"""The analysis in several processes, each with its share of the samples; and whole runs under torchrun."""

import contextlib

import pytest
import torch
from memory import Killed, MemoryCheckpoint
from networks import build, cut, explicit_hessian, samples
from processes import in_processes, run_in_two
from runs import files_below, finished, read_json, run_folder, run_here
from safetensors.torch import load_file
from torch.nn import functional as F

import train  # noqa: F401 - once, for all the processes that are forked
from hawq.blocks import find_blocks
from hawq.curvature import (
    BlockHessian,
    Fisher,
    GradientNorm,
    Hutchinson,
    Lanczos,
    LowRank,
    PowerIteration,
    activation_traces,
)
from hawq.distributed import rank
from hawq.experiment.metrics import read_metrics
from hawq.sensitivity import block_weights, measure_curvature

SIZES = {1: (13,), 2: (9, 4), 3: (5, 8, 0)}
SOLVERS = [Lanczos(), PowerIteration(), Hutchinson(max_products=20, rank=2), Fisher(max_draws=10), GradientNorm()]
SOLVERS += [LowRank(rows=6), LowRank("trace", 0.2, 4, curvature="hessian")]


def share_of(batch, processes):
    """This process' own batches: none, where its share is empty."""
    inputs, targets = cut(batch, SIZES[processes])[rank()]
    return cut((inputs, targets), (len(inputs) - 2, 2)) if len(inputs) > 2 else []


def curvature_of(processes, solver, checkpoint=None):
    model = build("residual")
    batches = share_of(samples(13), processes)
    return measure_curvature(model, find_blocks(model), batches, F.cross_entropy, solver, 0, checkpoint, 0.0)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_every_process_finds_what_one_alone_finds(solver):
    """Shares are ragged, and one of three is empty."""
    alone = curvature_of(1, solver)
    found = in_processes(3, lambda: curvature_of(3, solver))
    assert all(result.estimates == found[0].estimates for result in found)
    assert all(result.num_samples == 13 and result.loss == pytest.approx(alone.loss, rel=1e-12) for result in found)
    for block, estimates in alone.estimates.items():
        for quantity, estimate in estimates.items():
            assert found[0].estimates[block][quantity].value == pytest.approx(estimate.value, rel=1e-5), block


def test_products_are_sums_over_all_processes():
    model, batch = build("branches"), samples(13)
    (block, *_) = find_blocks(model)
    vector = torch.randn(block.num_weights, dtype=torch.float64)

    def product():
        operator = BlockHessian(model, {block.name: block_weights(model, block)}, share_of(batch, 2), F.cross_entropy)
        return operator.products({block.name: vector})[block.name]

    expected = explicit_hessian(model, block, batch, F.cross_entropy) @ vector
    for found in in_processes(2, lambda: product().tolist()):
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)


def test_more_processes_than_samples():
    model, batch = build("mlp"), samples(2)

    def found():
        batches = [cut(batch, (1, 1))[rank()]] if rank() < 2 else []
        return measure_curvature(model, find_blocks(model), batches, F.cross_entropy, Lanczos(1e-8, 200), 0)

    results = in_processes(3, found)
    for block in find_blocks(model):
        true = float(torch.linalg.eigvalsh(explicit_hessian(model, block, batch, F.cross_entropy))[-1])
        for result in results:
            assert result.estimates[block.name]["eigenvalue"].value == pytest.approx(true, rel=1e-8)


def test_warnings_do_not_depend_on_whose_share_is_empty():
    model, batch = build("mlp"), samples(2)

    def heard():
        texts = []
        batches = [batch] if rank() == 1 else []
        measure_curvature(model, find_blocks(model), batches, F.cross_entropy, GradientNorm(), 0, warn=texts.append)
        return texts

    assert in_processes(2, heard) == [[], []]


def test_activation_traces_are_means_over_all_processes():
    model, batch = build("residual"), samples(13)
    layers = {"unit": ["unit.conv1", "unit.conv2"], "head": ["head"]}

    def traces(processes):
        parameters = {b.name: block_weights(model, b) for b in find_blocks(model)}
        operator = BlockHessian(model, parameters, share_of(batch, processes), F.cross_entropy)
        return activation_traces(operator, layers, 0.05, 100, 0)

    alone, (first, second) = traces(1), in_processes(2, lambda: traces(2))
    assert first == second
    for name, estimate in alone.items():
        assert abs(first[name].value - estimate.value) <= 3 * (first[name].error + estimate.error)


class Mortal(Lanczos):
    """Ends in every process in the middle of the third round on all samples."""

    def update(self, state, reading):
        if self.tolerance == 1e-8 and state["products"] == 2:
            raise Killed
        return super().update(state, reading)


def test_the_first_process_stores_and_all_go_on_from_there():
    def killed():
        checkpoint = MemoryCheckpoint()
        with contextlib.suppress(Killed):
            curvature_of(2, Mortal(1e-8), checkpoint if rank() == 0 else None)
        return checkpoint.load()

    stored, nothing = in_processes(2, killed)
    assert stored["states"]["head"]["products"] == 2 and nothing is None

    def resumed():
        checkpoint = MemoryCheckpoint()
        checkpoint.save(stored)
        return curvature_of(2, Lanczos(1e-8), checkpoint if rank() == 0 else None).estimates

    straight = in_processes(2, lambda: curvature_of(2, Lanczos(1e-8)).estimates)
    assert in_processes(2, resumed) == straight


VALIDATED = (
    *("solver.max_iterations=30", "validate.solvers=[gradient,fisher]"),
    *("validate.num_samples=8", "validate.bit_widths=[4]", "validate.draws=10", "validate.plans=4"),
)


def test_torchrun_gives_the_results_of_one_process(tmp_path):
    """Rounding apart, which the steps of training and then of quantisers carry on."""
    batches = (
        "analysis.num_samples=15",
        "analysis.batch_size=4",
        "float_network.batch_size=15",
        "finetune.batch_size=15",
    )
    ordered = ("finetune.order=descending", "bits.target=13.1")
    settings = ("stages=[analysis,validate,allocation,finetune,export,report]", *batches, *ordered, *VALIDATED)
    process = run_in_two(tmp_path / "two", *settings)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("float accuracy") == process.stdout.count("Report: ") == 1
    assert run_here(tmp_path / "one", *settings) is None
    one, two = (run_folder(tmp_path / name) for name in ("one", "two"))
    assert files_below(one) == files_below(two)
    for stage in ("float_network", "analysis", "validate", "finetune", "export"):
        assert len(finished(tmp_path / "one", stage)) == len(finished(tmp_path / "two", stage)) > 0
    rows = list(zip(read_metrics(one), read_metrics(two), strict=True))
    losses = [
        (alone["loss"], shared["loss"]) for alone, shared in rows if alone["stage"] in ("float_network", "finetune")
    ]
    assert len(losses) == 4 and all(shared == pytest.approx(alone, rel=0.01) for alone, shared in losses)
    assert losses[0][1] == pytest.approx(losses[0][0], rel=1e-6)
    rows = [read_json(folder / "sensitivity.json")["rows"] for folder in (one, two)]
    for alone, shared in zip(*rows, strict=True):
        assert shared["eigenvalue"]["value"] == pytest.approx(alone["eigenvalue"]["value"], rel=1e-3)
    alone, shared = (read_json(folder / "validation.json") for folder in (one, two))
    names = [score["name"] for score in shared["scores"]]
    assert names == [score["name"] for score in alone["scores"]]
    assert names[:2] == ["gradient", "fisher"] and {"kl", "error", "relative_error"} < {*names}
    for ours, theirs in zip(alone["scores"], shared["scores"], strict=True):
        for block, omegas in ours["omegas"].items():
            assert theirs["omegas"][block] == pytest.approx(omegas, rel=1e-3)
    assert read_json(one / "plan.json")["precisions"] == read_json(two / "plan.json")["precisions"]
    codes = [load_file(folder / "model.safetensors")["codes"] for folder in (one, two)]
    assert (codes[0] == codes[1]).double().mean() > 0.99


REFUSED = {
    "in preparation": (["dataset.size=3"], "error: dataset.size=3 is out of range: give 8 to"),
    "in the first process alone": (["stages=[finetune]"], "error: stages=['finetune'] leaves out analysis"),
    "in every process": (["stages=[analysis]", "solver.memory_limit_gib=0.01"], "error: solver.memory_limit_gib=0.01"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_is_told_once_and_ends_all(arguments, message, tmp_path):
    """The first process says why, the others leave with it."""
    told = in_processes(2, lambda: run_here(tmp_path, "analysis.batch_size=4", *arguments))
    assert told[0].startswith(message)
    assert told[1] == "1"
