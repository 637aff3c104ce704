"""torch.compile, checked against the network as it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hawq.distributed import all_reduce
from hawq.errors import UserError, listed
from hawq.finetuning.step import Batch, Network, Objective, add_gradients
from hawq.structures import main_output
from hawq.trials import mean_with_error

_LOG = logging.getLogger(__name__)

_TOLERANCES = {"float32": 0.01, "bfloat16": 0.1}  # relative; other rounding moves values to the neighbouring code
_ROUNDING = {"float32": 2.0**-16, "bfloat16": 2.0**-9}  # relative changes of inputs that are as small as rounding
_TRIES, _STANDARD_ERRORS = 6, 4.0  # batches changed that little, and the errors of their mean difference
_LONGER = 0.5  # relative; the directions of gradients are rounding's where a network is not trained


@dataclass(frozen=True)
class _Step:
    """What a forward and backward gave: the loss, and parameter → length of its gradient."""

    loss: float
    lengths: dict[str, float]

    @property
    def length(self) -> float:
        """Of the whole gradient."""
        return math.hypot(*self.lengths.values())

    def is_close(self, other: _Step, tolerance: float) -> bool:
        """Whether losses agree, and lengths as far as they must."""
        return math.isclose(self.loss, other.loss, rel_tol=tolerance) and math.isclose(
            self.length, other.length, rel_tol=_LONGER
        )


def compiled(model: nn.Module, objective: Objective, batch: Batch, seed: int) -> Network:
    """`torch.compile` of a network in train mode, with the same random numbers; the network's state is unchanged.

    Its loss must be the same, its gradient about as long, and no parameter's may have vanished. Where a block has just
    been quantised, rounding alone may change the loss of a batch by a tenth. So steps that disagree are compared again
    on copies of the batch that differ by as much as rounding does.

    Args:
        model: the network in train mode.
        objective: the loss, which must agree between both.
        batch: (inputs (N, ...), targets (N, ...)) that it is compared on.
        seed: of the randomness inside the network.

    Raises:
        UserError: this machine cannot compile, or the compiled network gives a different loss or gradient.
    """
    torch.compiler.reset()  # quantisers that were switched on since would count against the limit of recompilations
    fast: Network = torch.compile(model, options={"fallback_random": True})
    expected = _step_once(model, model, objective, batch, seed)
    try:
        found = _step_once(model, fast, objective, batch, seed)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"compile=true fails here ({reason}): give compile=false, or install a compiler") from error
    if lost := [name for name, length in expected.lengths.items() if length > 0 and not found.lengths.get(name, 0) > 0]:
        raise UserError(f"compile=true loses the gradient of {listed(lost)}: give compile=false")
    tolerance = _TOLERANCES[objective.precision]
    if not expected.is_close(found, tolerance):
        changed = [_rounded_otherwise(batch, objective.precision, at) for at in range(_TRIES)]
        pairs = [[_step_once(model, network, objective, one, seed) for network in (model, fast)] for one in changed]
        if not _agree([[one.loss for one in pair] for pair in pairs], tolerance):
            change = f"from {expected.loss:.6g} to {found.loss:.6g}"
            raise UserError(f"compile=true changes the loss of a batch {change}: give compile=false")
        if not _agree([[one.length for one in pair] for pair in pairs], _LONGER):
            change = f"from {expected.length:.3g} to {found.length:.3g}"
            raise UserError(f"compile=true changes the length of a gradient {change}: give compile=false")
    return fast


def with_compiled_teacher(objective: Objective, inputs: Tensor) -> Objective:
    """The same loss with `torch.compile` of its teacher, where that gives the same outputs; else as it is.

    Args:
        objective: of a network that could be compiled.
        inputs: (N, ...), which both forms of the teacher are compared on.
    """
    distillation = objective.distillation
    if distillation is None:
        return objective
    plain = replace(distillation, network=None)
    fast = replace(plain, network=torch.compile(plain.teacher))
    try:
        expected, found = (main_output(objective.outputs(each.teach, inputs)) for each in (plain, fast))
    except Exception as error:  # whatever the compiler cannot do in eval mode
        _LOG.debug("the teacher is not compiled: %s", error)
        return replace(objective, distillation=plain)
    same = (found - expected).abs().max() <= _TOLERANCES[objective.precision] * expected.abs().max()
    return replace(objective, distillation=fast if same else plain)


def _rounded_otherwise(batch: Batch, precision: str, seed: int) -> Batch:
    """The batch with inputs that are changed by as much as rounding does."""
    inputs, targets = batch
    if not inputs.is_floating_point():
        return batch
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return inputs * (1 + _ROUNDING[precision] * noise).to(inputs), targets


def _agree(pairs: Sequence[Sequence[float]], tolerance: float) -> bool:
    """Whether values of both networks, (tries, 2), agree in the mean, but for a tolerance and four standard errors."""
    values = torch.tensor(pairs, dtype=torch.float64)
    difference, error = mean_with_error(values[:, 1] - values[:, 0])
    return abs(difference) <= tolerance * float(values[:, 0].mean().abs()) + _STANDARD_ERRORS * error


def _step_once(model: nn.Module, network: Network, objective: Objective, batch: Batch, seed: int) -> _Step:
    """One forward and backward; afterwards gradients are cleared and buffers restored."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(seed)
    try:
        loss = add_gradients(network, objective, batch, 1)
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        all_reduce([loss, *gradients.values()])
        return _Step(float(loss), {name: float(gradient.norm()) for name, gradient in gradients.items()})
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
