"""What every solver promises, on matrices whose spectra are known."""

import math

import pytest
import torch
from spectra import SPECTRA, matrix, reload

from hawq.curvature import Fisher, GradientNorm, Hutchinson, Lanczos, LowRank, PowerIteration, RandomScore, solve
from hawq.curvature.solver import CURVATURES, READS, STARTS, RowSolver, Solver

SOLVERS = {
    "lanczos": Lanczos(1e-6),
    "lanczos, both ends": Lanczos(1e-6, both_ends=True),
    "power": PowerIteration(1e-3, 500, "residual"),
    "power, published rule": PowerIteration(1e-3, 500),
    "hutchinson": Hutchinson(0.2, 300),
    "hutchinson, rank 1": Hutchinson(0.2, 300, rank=1),
    "hutchinson, rank 2": Hutchinson(0.2, 300, rank=2),
    "hutchinson, rank 8": Hutchinson(0.2, 300, rank=8),
    "fisher": Fisher(0.2, 60),
    "low rank": LowRank(rows=2),
    "low rank, no rows": LowRank(rows=0),
    "low rank, trace": LowRank("trace", 0.2, 2),
    "gradient": GradientNorm(),
    "random": RandomScore(),
}
EVERY = [(solver, spectrum) for solver in SOLVERS for spectrum in SPECTRA]


def readings(solver, dense):
    """What the solver reads of `dense`: products; a gradient; or rows and sketches s with E ‖s‖² = Σ |diagonal|."""
    count = 0

    def read(state):
        nonlocal count
        count += 1
        if solver.reads == "products":
            return dense @ state["vector"]
        if solver.reads == "gradients":
            return dense[0]
        roots = dense.diagonal().abs().sqrt()
        if solver.reads == "rows" and count <= solver.rows:
            return roots * (torch.arange(len(roots)) == count - 1)
        generator = torch.Generator().manual_seed(count)
        roots = torch.where(torch.arange(len(roots)) < getattr(solver, "rows", 0), 0.0, roots)
        return roots * torch.randn(len(dense), generator=generator, dtype=dense.dtype)

    return read


def walk(solver, dense, start, keep=lambda state: state):
    """All states of a run, each passed through `keep` before it is taken up again."""
    read, states = readings(solver, dense), [solver.start(start, seed=5)]
    while not states[-1]["done"]:
        state = keep(states[-1])
        states.append(solver.update(state, read(state)))
    return states


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_what_is_read_of_a_solver_stands_in_the_contract(solver):
    wanted = [name for name, value in vars(Solver).items() if isinstance(value, property)]
    assert len(wanted) >= 6 and all(hasattr(solver, name) for name in wanted)
    assert solver.reads in READS and solver.curvature in CURVATURES and solver.start_from in STARTS
    assert isinstance(solver, RowSolver) == (solver.reads == "rows")


@pytest.mark.parametrize(("solver", "spectrum"), EVERY)
def test_a_stored_state_goes_on_as_if_nothing_had_happened(solver, spectrum):
    """Also half-done states are alike, so an update never changes the state that it is given."""
    solver, (dense, start) = SOLVERS[solver], matrix(SPECTRA[spectrum])
    kept = []
    straight = walk(solver, dense, start)
    reloaded = walk(solver, dense, start, lambda state: kept.append(reload(state)) or reload(state))
    assert len(reloaded) == len(straight)
    for one, other in zip(straight, reloaded, strict=True):
        assert repr(solver.estimates(one)) == repr(solver.estimates(other))  # repr: NaN is NaN
    for old, state in zip(kept, straight, strict=False):
        assert repr(solver.estimates(old)) == repr(solver.estimates(state))


@pytest.mark.parametrize(("solver", "spectrum"), EVERY)
def test_the_end_is_finite_and_honest(solver, spectrum):
    solver, values = SOLVERS[solver], SPECTRA[spectrum]
    dense, start = matrix(values)
    found = solver.estimates(walk(solver, dense, start)[-1])
    assert found
    for quantity, estimate in found.items():
        assert math.isfinite(estimate.value) and math.isfinite(estimate.error) and estimate.error >= 0
        if quantity == "proxy" or solver.reads != "products" or not estimate.converged:
            continue
        if quantity == "trace":
            assert abs(estimate.value - sum(values)) <= 4 * estimate.error + 1e-9
        else:  # what the residual proves; that it is the right end is the matter of each solver's own tests
            assert min(abs(estimate.value - value) for value in values) <= estimate.error + 1e-9
        if hasattr(solver, "tolerance") and quantity != "smallest":
            rule = getattr(solver, "stopping", "residual")
            assert rule == "change" or estimate.error <= solver.tolerance * abs(estimate.value) + 1e-12


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_both_ends(spectrum):
    dense, start = matrix(SPECTRA[spectrum])
    found = solve(Lanczos(1e-9, both_ends=True), dense.mv, start)
    assert found["eigenvalue"].value == pytest.approx(max(SPECTRA[spectrum]), abs=1e-8)
    assert found["smallest"].value == pytest.approx(min(SPECTRA[spectrum]), abs=1e-8)
    assert found["eigenvalue"].converged and found["smallest"].converged


@pytest.mark.parametrize("solver", [Lanczos(1e-6), Lanczos(1e-6, both_ends=True), PowerIteration(1e-6, 5000)], ids=str)
@pytest.mark.parametrize("spectrum", ["clear gap", "dominant negative", "all negative", "degenerate top pair"])
def test_the_eigenvector_belongs_to_the_eigenvalue(solver, spectrum):
    """A run that starts from it is done at once; with both ends, after two products."""
    dense, start = matrix(SPECTRA[spectrum])
    vector = solver.eigenvector(walk(solver, dense, start)[-1])
    assert float(vector.norm()) == pytest.approx(1.0)
    both = getattr(solver, "both_ends", False)
    if not both:
        torch.testing.assert_close(dense @ vector, max(SPECTRA[spectrum]) * vector, rtol=0, atol=0.02)
    again = solve(Lanczos(0.05, both_ends=both), dense.mv, vector)
    assert again["eigenvalue"].products <= (2 if both else 1)


@pytest.mark.parametrize("rank", [4, 8])
def test_a_krylov_space_that_is_everything_gives_the_exact_trace(rank):
    dense, start = matrix(SPECTRA["clear gap"])
    trace = solve(Hutchinson(rank=rank), dense.mv, start)["trace"]
    assert trace.value == pytest.approx(12.0) and trace.error == 0.0 and trace.converged and trace.products == 4


def test_too_few_products_are_told():
    dense, start = matrix([50.0, -49.0, 3.0, -2.0, 1.0, 0.5])
    for solver in (Hutchinson(1e-3, 12), Hutchinson(1e-3, 12, rank=2), PowerIteration(1e-9, 3), Lanczos(1e-9, 3)):
        for estimate in solve(solver, dense.mv, start).values():
            assert not estimate.converged and estimate.error > 0


def test_the_seed_decides_the_draws():
    dense, start = matrix(SPECTRA["clear gap"])
    for solver in (Hutchinson(), RandomScore()):
        one, same, other = (solve(solver, dense.mv, start, seed) for seed in (1, 1, 1000))
        assert one == same != other


VALUES = [
    (Hutchinson, {"rank": -1}, "rank=-1"),
    (Hutchinson, {"rank": 8, "max_products": 9}, "max_products=9 .*give 10 "),
    (Hutchinson, {"tolerance": 0.0}, "tolerance=0.0"),
    (Hutchinson, {"start_from": "subset"}, "random or gradient"),
    (Lanczos, {"curvature": "fisher"}, "'fisher' is unknown: give hessian or ggn"),
    (PowerIteration, {"start_from": "zero"}, f"'zero' is unknown: give {', '.join(STARTS)}"),
    (Fisher, {"max_draws": 1}, "max_draws=1"),
    *[(k, {"memory_limit_gib": 0.0}, "memory_limit_gib=0.0") for k in (Lanczos, Fisher, GradientNorm, Hutchinson)],
]


@pytest.mark.parametrize(("kind", "values", "message"), VALUES, ids=str)
def test_values_out_of_range(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
