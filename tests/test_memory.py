"""Memory: what a computation takes, what fits a limit, and what happens when it runs out after all."""

from pathlib import Path

import pytest
import torch
from networks import build, cut, samples
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import OPERATORS, BlockHessian, Fisher, GradientNorm, Lanczos, activation_traces
from hawq.curvature.memory import free_bytes, is_out_of_memory, peak_bytes, samples_that_fit
from hawq.errors import UserError
from hawq.sensitivity import analyze, block_weights

MIB = 2**20
KIB = 1024


def chain():
    """Three vectors, of which two live at a time; views are no memory of their own."""
    first = torch.zeros(MIB)
    second = first + 1
    del first
    return second.view(2, -1).t() * 2


WORK = {
    "one": (lambda: torch.zeros(MIB), 4 * MIB),
    "two at a time": (chain, 8 * MIB),
    "in place": (lambda: torch.zeros(MIB).add_(1).mul_(2), 4 * MIB),
    "one after another": (lambda: [torch.zeros(MIB).sum() for _ in range(3)], 4 * MIB + 3 * KIB),
    "kept": (lambda: [torch.zeros(MIB) for _ in range(3)], 12 * MIB),
    "nothing": (lambda: None, 0),
}


@pytest.mark.parametrize(("work", "expected"), WORK.values(), ids=WORK)
def test_peak_of_a_known_computation(work, expected):
    assert peak_bytes(work) == pytest.approx(expected, abs=4 * KIB)


def test_peak_with_a_graph():
    """Five activations are saved for the backward, which needs two gradients more at most."""
    weight = torch.ones(MIB, requires_grad=True)

    def work():
        value = weight
        for _ in range(5):
            value = value.sin()
        value.sum().backward()

    assert 6 * 4 * MIB <= peak_bytes(work) <= 8 * 4 * MIB
    weight.grad = None


@pytest.mark.parametrize(("fixed", "each"), [(0, 10), (70, 10), (1000, 1)])
@pytest.mark.parametrize("in_use", [0, 500])
def test_samples_that_fit(fixed, each, in_use):
    needs = {size: fixed + each * size for size in (2, 4)}
    for samples_wanted in (1, 7, 100):
        limit = in_use + (fixed + each * (samples_wanted + 0.5)) / 0.6
        assert samples_that_fit(limit, in_use, needs) == samples_wanted
    with pytest.raises(UserError, match=r"solver.memory_limit_gib=.* is too little for one sample: give"):
        samples_that_fit(in_use + fixed, in_use, needs)


@pytest.mark.parametrize("limit", [1e-6, 0.02])
@pytest.mark.parametrize("kind", [Lanczos, Fisher, GradientNorm])
def test_a_limit_that_is_too_small_is_refused_with_one_that_is_not(kind, limit):
    model, batch = build("residual", torch.float32), samples(16, torch.float32)
    with pytest.raises(UserError, match="give ") as caught:
        analyze(model, find_blocks(model), [batch], solver=kind(memory_limit_gib=limit))
    enough = float(str(caught.value).split("give ")[1].split(" ")[0])
    analyze(model, find_blocks(model), [batch], solver=kind(memory_limit_gib=enough + 0.02))


def operator_of(model, batches, kind="hessian", limit=None):
    return OPERATORS[kind](
        model, {b.name: block_weights(model, b) for b in find_blocks(model)}, batches, F.cross_entropy, limit
    )


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_limit_cuts_the_batches_and_changes_no_result(kind, monkeypatch):
    monkeypatch.setattr("hawq.curvature.operator.memory_in_use_bytes", lambda device: 0.0)
    model, batch = build("residual", torch.float32), samples(600, torch.float32)
    whole = operator_of(model, [batch], kind)
    limited = operator_of(model, [batch], kind, 2 * MIB)
    assert 1 < limited.samples.largest_batch < 300
    vectors = {name: whole.random_vector(name, torch.Generator().manual_seed(0)) for name in whole.names}
    expected, found = whole.products(vectors), limited.products(vectors)
    for name in whole.names:
        assert float((found[name] - expected[name]).norm()) <= 1e-4 * float(expected[name].norm())


class Small:
    """Memory that is enough for `most` samples in a forward that gradients go through."""

    def __init__(self, model, most, error):
        self.most, self.error, self.seen = most, error, []
        model.register_forward_pre_hook(self)

    def __call__(self, _, inputs):
        if torch.is_grad_enabled():
            self.seen.append(len(inputs[0]))
            if len(inputs[0]) > self.most:
                raise self.error


ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried"),
    "linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
}
READINGS = {
    "products": lambda operator, vectors: operator.products(vectors),
    "gradients": lambda operator, vectors: operator.gradients(),
    "sketches": lambda operator, vectors: operator.sketches(3),
    "activation traces": lambda operator, vectors: {
        name: torch.tensor(e.value) for name, e in activation_traces(operator, {"head": ["head"]}, 0.01, 3, 0).items()
    },
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", OPERATORS)
def test_when_memory_runs_out_batches_are_halved(kind, reading, error):
    model, batch = build("residual"), samples(13)
    operator = operator_of(model, cut(batch, (11, 2)), kind)
    vectors = {name: operator.random_vector(name, torch.Generator().manual_seed(0)) for name in operator.names}
    expected = READINGS[reading](operator, vectors)
    small = Small(model, 3, error)
    found = READINGS[reading](operator, vectors)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert small.seen[:2] == [11, 5] and operator.samples.largest_batch == 2


def test_a_kept_graph_is_made_anew_in_pieces():
    """Memory runs out in the second round, when the graph of the single batch is already there."""
    model, batch = build("residual"), samples(8)
    operator = operator_of(model, [batch])
    vectors = {"head": torch.ones(12, dtype=torch.float64)}
    expected, product, failed = operator.products(vectors)["head"], operator._product, []

    def once_too_much(*arguments):
        if not failed:
            failed.append(True)
            raise ERRORS["gpu"]
        return product(*arguments)

    operator._product = once_too_much
    torch.testing.assert_close(operator.products(vectors)["head"], expected)
    assert operator.samples.largest_batch == 4


def test_a_single_sample_that_is_too_much_is_told():
    model = build("residual")
    operator = operator_of(model, [samples(4)])
    Small(model, 0, ERRORS["gpu"])
    with pytest.raises(UserError, match="memory runs out with a single sample"):
        operator.gradients()


def test_other_errors_are_left_alone():
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    model = build("residual")
    operator = operator_of(model, [samples(4)])
    Small(model, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        operator.products({"head": torch.ones(12, dtype=torch.float64)})
    assert isinstance(operator, BlockHessian) and operator.samples.largest_batch == 4


TEXTS = {
    "std::bad_alloc": True,
    "could not create a memory object": True,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": True,
    "CUDA error: out of memory": True,
    "Expected all tensors to be on the same device": False,
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items())
def test_texts_of_allocators(text, expected):
    assert is_out_of_memory(RuntimeError(text)) == expected
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("out of memory"))


def test_what_this_machine_says():
    """Four terabytes: the text of the CPU's allocator as it is."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**12)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("free", [3 * 2**20, 12 * 2**20, 10 * 2**30])
def test_without_a_limit_a_fifth_of_the_free_memory_is_taken(free, monkeypatch):
    """As with a limit of that size, batches are cut and no product changes."""
    for room in ("operator", "memory"):
        monkeypatch.setattr(f"hawq.curvature.{room}.memory_in_use_bytes", lambda device: 0.0)
    monkeypatch.setattr("hawq.curvature.memory.free_bytes", lambda device: (float(free), 2.0**40))
    monkeypatch.setattr("hawq.curvature.operator.is_scarce", lambda device: False)
    model, batch = build("residual", torch.float32), samples(600, torch.float32)
    whole, spared = operator_of(model, [batch]), operator_of(model, [batch])
    spared.spare_memory()
    limited = operator_of(model, [batch], limit=free / 5)
    assert spared.samples.largest_batch == limited.samples.largest_batch
    assert (spared.samples.largest_batch == 600) == (free > 2**30)
    assert spared.vectors_that_fit == whole.vectors_that_fit  # so results do not depend on the machine
    vectors = {name: whole.random_vector(name, torch.Generator().manual_seed(0)) for name in whole.names}
    for name, expected in whole.products(vectors).items():
        assert float((spared.products(vectors)[name] - expected).norm()) <= 1e-4 * float(expected.norm())


def test_batches_are_halved_when_memory_becomes_scarce(monkeypatch):
    model, batch = build("residual", torch.float32), samples(64, torch.float32)
    operator = operator_of(model, [batch])
    expected = operator.gradients()
    operator.spare_memory()
    for size in (32, 16):
        monkeypatch.setattr("hawq.curvature.operator.is_scarce", lambda device: True)
        found = operator.gradients()
        monkeypatch.setattr("hawq.curvature.operator.is_scarce", lambda device: False)
        operator.gradients()
        assert operator.samples.largest_batch == size
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert operator.subset(0.5)._is_watched


def test_free_memory_is_what_the_system_says():
    known = free_bytes(torch.device("cpu"))
    if known is not None:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        assert 0 < known[0] <= known[1] <= 1024 * int(rows["MemTotal"].split()[0])
