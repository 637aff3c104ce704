"""Slices of the loss along the top eigenvector: exact where the loss is quadratic, and nothing is left moved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hawq.curvature import BlockHessian, landscape


def test_quadratic_loss_is_its_own_prediction() -> None:
    """Least squares in one layer: the Hessian is XᵀX/N·2/classes for each row of outputs, known in closed form."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    inputs, targets = (
        torch.randn(40, 5).double() * torch.tensor([3.0, 1, 1, 1, 0.1]).double(),
        torch.randn(40, 3).double(),
    )
    hessian = 2 / (3 * 40) * inputs.T @ inputs
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    before = model.weight.detach().clone()
    operator = BlockHessian(model, {"fc": [model.weight]}, [(inputs, targets)], nn.functional.mse_loss)
    (found,) = landscape(operator, {"fc": 0.7}, points=5)
    assert torch.equal(model.weight, before)
    assert found.eigenvalue == pytest.approx(top, rel=1e-3)
    assert found.distances == pytest.approx((-0.7, -0.35, 0.0, 0.35, 0.7))
    for distance, loss in zip(found.distances, found.losses, strict=True):
        expected = operator.mean_loss + found.slope * distance + 0.5 * found.eigenvalue * distance**2
        assert loss == pytest.approx(expected, rel=1e-6)


def test_several_blocks_are_moved_one_by_one_and_put_back_exactly() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator = BlockHessian(
        model, {"a": [model[0].weight], "b": [model[2].weight]}, batches, nn.functional.cross_entropy
    )
    slices = landscape(operator, {"b": 0.5, "a": 0.25}, seed=3)
    assert [one.name for one in slices] == ["b", "a"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for one in slices:
        middle = len(one.losses) // 2
        assert one.losses[middle] == pytest.approx(operator.mean_loss, rel=1e-5) and len(set(one.losses)) > 5


@pytest.mark.parametrize(("reach", "points"), [({"a": 0.0}, 5), ({"a": float("inf")}, 5), ({"a": 1.0}, 2)])
def test_values_out_of_range(reach: dict[str, float], points: int) -> None:
    model = nn.Linear(2, 2)
    batch = (torch.randn(4, 2), torch.randint(2, (4,)))
    operator = BlockHessian(model, {"a": [model.weight]}, [batch], nn.functional.cross_entropy)
    with pytest.raises(ValueError, match="is out of range"):
        landscape(operator, reach, points=points)
