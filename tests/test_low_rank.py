"""Eigenvalue and trace from the rows of the Gauss-Newton matrix, against explicit matrices."""

import pytest
import torch
from networks import NETWORKS, build, cut, explicit_gauss_newton, explicit_hessian, samples
from torch import nn
from torch.nn import functional as F

from hawq.blocks import find_blocks
from hawq.curvature import BlockGaussNewton, BlockHessian, Hutchinson, Lanczos, LowRank, solve_blocks
from hawq.curvature.output_factor import OutputFactor
from hawq.sensitivity import analyze, block_weights

BATCH = samples(7)
ROWS = 7 * 3
PIECEWISE_LINEAR = {"residual": True, "depthwise": True, "branches": False, "tied": False, "mlp": False}


def operator_of(model, kind=BlockGaussNewton, sizes=(4, 3), loss=F.cross_entropy):
    parameters = {block.name: block_weights(model, block) for block in find_blocks(model)}
    return kind(model, parameters, cut(BATCH, sizes), loss)


def matrices(model, loss=F.cross_entropy, explicit=explicit_gauss_newton):
    return {block.name: explicit(model, block, BATCH, loss) for block in find_blocks(model)}


def squared_error(outputs, targets):
    return F.mse_loss(outputs, F.one_hot(targets, 3).to(outputs))


@pytest.mark.parametrize("loss", [F.cross_entropy, squared_error], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_all_rows_make_the_matrix(name, sizes, loss):
    model = build(name)
    operator = operator_of(model, sizes=sizes, loss=loss)
    factor = OutputFactor(operator, ROWS, 0.0, seed=0)
    rows = [factor.row(index) for index in range(factor.num_heads)]
    assert factor.is_factor
    for block, expected in matrices(model, loss).items():
        stacked = torch.stack([row[block] for row in rows])
        torch.testing.assert_close(stacked.T @ stacked, expected, rtol=1e-8, atol=1e-10)


def test_rows_follow_a_loss_that_weighs_its_samples():
    """Its mean depends on who else is in the batch, so batches keep their borders."""
    weights = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    operator = operator_of(build("residual"), loss=lambda z, y: F.cross_entropy(z, y, weights))
    factor = OutputFactor(operator, ROWS, 0.0, seed=0)
    rows = [factor.row(index) for index in range(factor.num_heads)]
    vectors = {name: operator.random_vector(name, torch.Generator().manual_seed(1)) for name in operator.names}
    for name, product in operator.products(vectors).items():
        stacked = torch.stack([row[name] for row in rows])
        torch.testing.assert_close(stacked.T @ (stacked @ vectors[name]), product, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_samples_that_see_each_other_are_left_to_products(curvature):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), norm, nn.ReLU(), nn.Linear(4, 3)).double().eval()
    kind, explicit = {"hessian": (BlockHessian, explicit_hessian), "ggn": (BlockGaussNewton, explicit_gauss_newton)}[
        curvature
    ]
    operator = operator_of(model, kind, sizes=(7,))
    assert not operator.sees_samples_alone
    found = solve_blocks(operator, LowRank("trace", 0.1, curvature=curvature), seed=0)
    for block, matrix in matrices(model, explicit=explicit).items():
        assert abs(found[block]["trace"].value - float(matrix.trace())) <= 4 * found[block]["trace"].error + 1e-9


@pytest.mark.parametrize("sizes", [(7,), (4, 3)], ids=str)
@pytest.mark.parametrize("heads", [0, 5])
def test_sketches_are_what_the_heads_leave(heads, sizes):
    model = build("residual")
    factor = OutputFactor(operator_of(model, sizes=sizes), heads, 0.0, seed=3)
    assert factor.num_heads == heads
    rows = [factor.row(index) for index in range(heads + 600)]
    for block, expected in matrices(model).items():
        alone = sum(float(row[block].square().sum()) for row in rows[:heads])
        draws = torch.tensor([float(row[block].square().sum()) for row in rows[heads:]])
        assert abs(alone + draws.mean() - expected.trace()) <= 4 * draws.std() / 600**0.5
        top = torch.stack([row[block] for row in rows[:heads]]) if heads else torch.zeros(1, len(expected))
        left = torch.linalg.eigvalsh(expected - top.double().T @ top.double())
        assert float(left[0]) >= -1e-9  # positive semidefinite: the heads are a part of the matrix


def test_no_more_rows_than_needed():
    operator = operator_of(build("residual"))
    counts = [OutputFactor(operator, 100, rest, seed=0).num_heads for rest in (1.0, 0.5, 0.1, 0.0)]
    assert counts[0] == 0 and counts == sorted(counts) and 0 < counts[1] < counts[2] < counts[3] <= ROWS


@pytest.mark.parametrize("rows", [0, 2, 6, 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_are_within_their_bound(name, rows):
    """Also where rows do not settle it, and products finish it."""
    model = build(name)
    solver = LowRank(tolerance=0.01, rows=rows)
    found = solve_blocks(operator_of(model), solver, seed=0)
    for block, matrix in matrices(model).items():
        truth, estimate = float(torch.linalg.eigvalsh(matrix)[-1]), found[block]["eigenvalue"]
        assert estimate.converged and estimate.error <= 0.01 * estimate.value
        assert abs(estimate.value - truth) <= estimate.error + 1e-12
    by_rows = [block for block, estimates in found.items() if "trace" in estimates]
    assert len(by_rows) == (len(found) if rows == 100 else 0) or rows == 6


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("name", NETWORKS)
def test_traces(name, curvature):
    model = build(name)
    explicit = explicit_hessian if curvature == "hessian" else explicit_gauss_newton
    kind = BlockHessian if curvature == "hessian" else BlockGaussNewton
    found = solve_blocks(operator_of(model, kind), LowRank("trace", 0.05, 4, curvature=curvature), seed=1)
    for block, matrix in matrices(model, explicit=explicit).items():
        estimate = found[block]["trace"]
        by_rows = curvature == "ggn" or PIECEWISE_LINEAR[name]
        assert ("eigenvalue" in found[block]) != by_rows
        assert abs(estimate.value - float(matrix.trace())) <= 4 * estimate.error
        assert not by_rows or (estimate.converged and estimate.error <= 0.05 * estimate.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_are_linear_between_kinks_are_told(name):
    model = build(name)
    assert operator_of(model, BlockHessian).trace_is_gauss_newtons == PIECEWISE_LINEAR[name]
    same = all(
        torch.allclose(h.diagonal(), g.diagonal())
        for h, g in zip(matrices(model, explicit=explicit_hessian).values(), matrices(model).values(), strict=True)
    )
    assert same == PIECEWISE_LINEAR[name]


POOLS = [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.ReLU6(), nn.Hardtanh(-0.5, 0.5)]


@pytest.mark.parametrize("layer", POOLS, ids=str)
def test_poolings_and_clamps_are_linear_between_kinks(layer):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(4, 3)).double().eval()
    assert operator_of(model, BlockHessian).trace_is_gauss_newtons


def test_a_loss_that_is_not_convex_is_left_to_products():
    model = build("residual")

    def loss(outputs, targets):
        return outputs.pow(3).sum(1).mean()

    found = solve_blocks(operator_of(model, loss=loss), LowRank(tolerance=1e-6), seed=0)
    for block, matrix in matrices(model, loss).items():
        assert found[block]["eigenvalue"].value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-5)
        assert "trace" not in found[block]


def test_products_go_on_from_what_the_rows_have_shown():
    """The top of most rows is nearly the eigenvector, so fewer products are left than from a random start."""
    operator = operator_of(build("residual"))
    warm = solve_blocks(operator, LowRank(tolerance=1e-4, rows=12), seed=0)
    cold = solve_blocks(operator, Lanczos(1e-4, start_from="random"), seed=0)
    products = [sum(found[block]["eigenvalue"].products for block in found) for found in (warm, cold)]
    assert 0 < products[0] < products[1]


def test_the_trace_of_a_smooth_network_comes_with_its_eigenvalue():
    """Hutchinson takes over, which spends products on the top of the spectrum first."""
    model = build("mlp")
    solver, other = LowRank("trace", 0.05, curvature="hessian"), Hutchinson(0.05, rank=8)
    rows = analyze(model, find_blocks(model), [BATCH], solver=solver).rows
    expected = analyze(model, find_blocks(model), [BATCH], solver=other).rows
    assert [row.trace for row in rows] == [row.trace for row in expected]


def test_memory_keeps_rows_few():
    model = build("residual")
    limited = BlockGaussNewton(
        model,
        {block.name: block_weights(model, block) for block in find_blocks(model)},
        [BATCH],
        F.cross_entropy,
        memory_limit_bytes=2**40,
    )
    assert limited.vectors_that_fit == 12 < operator_of(model).vectors_that_fit


VALUES = [
    ({"quantity": "rank"}, "quantity='rank' is unknown: give eigenvalue or trace"),
    ({"curvature": "hessian"}, "quantity='eigenvalue' needs curvature=ggn"),
    ({"rows": -1}, "rows=-1"),
    ({"tolerance": 1.0}, "tolerance=1.0"),
    ({"start_from": "subset"}, "start_from='subset' .*random"),
]


@pytest.mark.parametrize(("values", "message"), VALUES, ids=str)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        LowRank(**values)
