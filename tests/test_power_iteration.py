"""Power iteration on matrices whose spectra are known."""

import pytest
from spectra import SPECTRA, matrix, solve_with_reloads

from hawq.curvature import PowerIteration, solve
from hawq.curvature.power import STOPPING_RULES


@pytest.mark.parametrize("stopping", STOPPING_RULES)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_finds_the_largest_algebraic_eigenvalue(spectrum, stopping):
    dense, start = matrix(spectrum)
    estimate = solve(PowerIteration(1e-9, 2000, stopping), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(max(spectrum), abs=1e-6)
    assert estimate.converged


@pytest.mark.parametrize("stopping", STOPPING_RULES)
def test_negative_semidefinite(stopping):
    dense, start = matrix([0.0, -1.0, -5.0])
    estimate = solve(PowerIteration(1e-6, 200, stopping), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("max_iterations", [1, 2, 5, 20])
@pytest.mark.parametrize("spectrum", [*SPECTRA.values(), [5.0, -5.0, 1.0], [5.0, -4.99]], ids=str)
def test_an_eigenvalue_lies_within_the_error(spectrum, max_iterations):
    dense, start = matrix(spectrum)
    estimate = solve(PowerIteration(1e-4, max_iterations, "residual"), dense.mv, start)["eigenvalue"]
    assert min(abs(value - estimate.value) for value in spectrum) <= estimate.error + 1e-12
    assert estimate.products <= 2 * max_iterations
    if estimate.converged:
        assert estimate.error <= 1e-4 * abs(estimate.value) + 1e-12


def test_change_rule_stops_where_the_paper_says():
    dense, start = matrix(SPECTRA["clear gap"])
    tolerance, values, vector = 0.01, [], start / start.norm()
    while len(values) < 2 or abs(values[-1] - values[-2]) > tolerance * abs(values[-1]):  # algorithm 1 of 1905.03696
        product = dense @ vector
        values.append(float(vector @ product))
        vector = product / product.norm()
    estimate = solve(PowerIteration(tolerance), dense.mv, start)["eigenvalue"]
    assert estimate.value == pytest.approx(values[-1], rel=1e-12)
    assert estimate.products == len(values)


@pytest.mark.parametrize("name", ["clear gap", "dominant negative"])
def test_a_stored_state_goes_on_as_if_nothing_had_happened(name):
    dense, start = matrix(SPECTRA[name])
    solver = PowerIteration(1e-8, 500)
    assert solve_with_reloads(solver, dense, start) == solve(solver, dense.mv, start)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"stopping": "never"}, "'never'.*change or residual"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        PowerIteration(**values)
