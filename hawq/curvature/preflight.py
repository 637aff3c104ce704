"""What would make a Hessian meaningless, found before it is computed and reported with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hawq.curvature.double_backward import lacks_second_derivative, second_derivatives
from hawq.curvature.operator import Batch, BlockOperator, Loss
from hawq.distributed import all_gather
from hawq.errors import UserError
from hawq.modes import analysis_mode

_FEW = 2  # samples that the checks run on
_NOISE = 1e-5  # curvature of a sample's loss below which float32 rounding of its probabilities dominates
_CONCENTRATED = 0.05  # share of the samples


def check_network(model: nn.Module, batches: Sequence[Batch], loss: Loss, *, twice: bool = True) -> list[str]:
    """Warnings about a network that is about to be analysed on `batches`, `twice`: with second derivatives.

    Raises:
        UserError: outputs that differ between two passes, weights in half precision, or an operation that has no
            second derivative; the module is named.
    """
    refuse_short_weights(model)
    if batches:
        inputs, targets = batches[0][0][:_FEW], batches[0][1][:_FEW]
        _refuse_random_outputs(model, inputs)
        if twice:
            _refuse_missing_second_derivative(model, inputs, targets, loss)
    return [*_mode_warnings(model), *_tie_warnings(model), *_precision_warnings(model)]


def refuse_short_weights(model: nn.Module) -> None:
    """Raises UserError for a parameter in half precision."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError(f"{name} is {parameter.dtype}, too coarse for second derivatives: give model.float()")


def check_loss(operator: BlockOperator) -> list[str]:
    """Warnings about a loss whose curvature is rounding noise, or comes from a few samples (memorised data)."""
    influence = torch.tensor(list(chain.from_iterable(all_gather(operator.influence))), dtype=torch.float64)
    if not len(influence) or float(influence.max()) < _NOISE:
        text = f"the loss ({operator.mean_loss:.2g}) is nearly flat at every sample, so the Hessian is rounding noise"
        return [f"{text}: analyse samples that the network has not memorised, or more of them"]
    effective = float(influence.sum().square() / influence.square().sum())
    if effective < _CONCENTRATED * len(influence):
        text = f"the curvature rests on about {effective:.0f} of {len(influence)} samples, the others are memorised"
        return [f"{text}: take more samples for steadier numbers"]
    return []


def _refuse_random_outputs(model: nn.Module, inputs: Tensor) -> None:
    passes = []
    with analysis_mode(model, []), torch.no_grad():
        for _ in range(2):
            with _recorded(model) as seen:
                model(inputs)
            passes.append([(leaf.name, leaf.output.clone()) for leaf in seen])
    for (name, first), (_, second) in zip(*passes, strict=True):
        if not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise UserError(
                f"module {name or type(model).__name__} gives another output for the same input in eval mode: "
                "switch its random numbers off"
            )


def _refuse_missing_second_derivative(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> None:
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    with analysis_mode(model, weights):
        with _recorded(model) as seen, second_derivatives():
            outputs = model(inputs)
        reason = _missing_derivative(loss(outputs, targets), weights)
        if reason is None:
            return
        guilty = next((leaf.name for leaf in seen if leaf.lacks_derivative()), None)
    raise UserError(
        f"{f'module {guilty}' if guilty else 'an operation of the network or the loss'} has no second derivative "
        f"({reason}): replace it by one that has, or use solver=fisher"
    )


def _missing_derivative(value: Tensor, by: Sequence[Tensor]) -> str | None:
    """Why `value` cannot be differentiated twice, or None when it can."""
    try:
        first = torch.autograd.grad(value, by, create_graph=True, allow_unused=True, materialize_grads=True)
        if any(_cut_off(gradient.grad_fn) for gradient in first):
            return "once_differentiable"
        curved = [gradient.sum() for gradient in first if gradient.requires_grad]
        if curved:
            torch.autograd.grad(sum(curved[1:], start=curved[0]), by, allow_unused=True)
    except RuntimeError as error:
        if not lacks_second_derivative(error):
            raise
        return str(error).splitlines()[0]
    return None


def _cut_off(node: Any) -> bool:
    """Whether a graph holds the mark that @once_differentiable leaves: `grad` by some inputs passes it by."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name() == "torch::autograd::Error":
                return True
            waiting += [following for following, _ in node.next_functions]
    return False


def _mode_warnings(model: nn.Module) -> Iterator[str]:
    if model.training:
        yield "the network is in training mode; it is analysed in eval mode and put back afterwards"
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            yield (
                f"{name} has no running statistics and uses those of each batch, so results depend on the batch size: "
                "analyse all samples in one batch"
            )


def _tie_warnings(model: nn.Module) -> Iterator[str]:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        if len(names) > 1:
            yield f"{' and '.join(names)} are one weight: its curvature is that of all its uses together"


def _precision_warnings(model: nn.Module) -> Iterator[str]:
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        yield "autocast is on; it is off during the analysis, which needs full float32"
    if device == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32):
        yield "TF32 is on; it is off during the analysis, which needs full float32"


@dataclass(frozen=True)
class _Leaf:
    """One call of a module without children."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor

    def lacks_derivative(self) -> bool:
        """Whether this call alone, on a copy of its input, cannot be differentiated twice."""
        if not self.inputs[0].is_floating_point():
            return False
        first = self.inputs[0].detach().clone().requires_grad_()
        with second_derivatives():
            value = self.module(first * 1.0, *self.inputs[1:])  # times one: a leaf may not be changed in place
        return _missing_derivative(value.square().sum(), [first]) is not None


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Leaf]]:
    """Every call of a module without children while active, in order."""
    seen: list[_Leaf] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
                seen.append(_Leaf(name, module, inputs, output))

        return record

    leaves = [(name, module) for name, module in model.named_modules() if not name or not any(module.children())]
    handles = [module.register_forward_hook(recorder(name)) for name, module in leaves]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
