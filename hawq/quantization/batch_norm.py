"""Batch norm statistics: re-estimated, carried over to a quantised network, frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hawq.modes import eval_mode
from hawq.progress import SILENT, Task, counted

Statistics = dict[_BatchNorm, tuple[Tensor, Tensor]]  # layer → running mean (C,), running variance (C,)


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running statistics become the mean over the statistics of the batches, all weighted equally.

    The network runs in eval mode, quantisers on and dropout off, except for its batch norms, which normalise by the
    batch (as in `torch.optim.swa_utils.update_bn`). A layer that no batch reaches keeps its statistics.

    Args:
        model: changed in place.
        batches: inputs (N, ...), augmented as in training.
    """
    _put(_measure(model, batches))


def freeze_batch_norm(model: nn.Module) -> None:
    """Normalises by the running statistics, which stay fixed, until the next `model.train()`."""
    for norm in _known(model):
        norm.eval()


class CarriedBatchNorm:
    """Running statistics that follow a change of the network: mean + (m₁ − m₀), variance · v₁ / v₀.

    m₀, v₀ are measured on the batches before the change, m₁, v₁ after it. A few batches suffice, and they need not be
    augmented as in training: the difference cancels.

    Args:
        model: before the change.
        batches: inputs (N, ...); those of a single sample are ignored.
        task: advanced by every sample of every pass.
        before: m₀ and v₀ where they are known, from `batch_statistics` of the same network and batches.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Tensor],
        task: Task = SILENT,
        before: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._model, self._task = model, task
        self._batches = _several(batches)
        self._known = {norm: (mean.clone(), var.clone()) for norm, (mean, var) in _known(model).items()}
        if before is None:
            self._before = _measure(model, counted(self._batches, task))
        else:
            self._before = {norm: before[name] for name, norm in model.named_modules() if name in before}

    @property
    def batches(self) -> list[Tensor]:
        """The inputs (N, ...) that statistics are measured on."""
        return list(self._batches)

    def follow(self, run: Callable[[int, Tensor], object] | None = None) -> None:
        """Adapts the running statistics to the network as it is now.

        Args:
            run: runs the network on the batch of a number; layers that it does not run keep their statistics.
        """
        carried: Statistics = {}
        for norm, (mean, var) in _measure(self._model, counted(self._batches, self._task), run).items():
            (known_mean, known_var), (mean_before, var_before) = self._known[norm], self._before[norm]
            ratio = (var + norm.eps) / (var_before + norm.eps)
            carried[norm] = known_mean + mean - mean_before, known_var * ratio
        _put(carried)

    def observe(self, run: Callable[[int, Tensor], object]) -> None:
        """Runs the network on each batch as `follow` does, and changes nothing; `run` as there."""
        _measure(self._model, self._batches, run)

    def undo(self) -> None:
        """The running statistics as they were before the change."""
        _put(self._known)


def batch_statistics(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Batch norm → mean (C,) and variance (C,) of what enters it on `batches` (N, ...): see `CarriedBatchNorm`."""
    names = {norm: name for name, norm in model.named_modules()}
    return {names[norm]: found for norm, found in _measure(model, _several(batches)).items()}


def _several(batches: Sequence[Tensor]) -> list[Tensor]:
    """Those with more than a single sample, which has no statistics."""
    return [inputs for inputs in batches if len(inputs) > 1]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has a batch norm with running statistics."""
    return bool(_known(model))


def _known(model: nn.Module) -> Statistics:
    """Layers with running statistics → these."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return {
        norm: (norm.running_mean, norm.running_var)
        for norm in norms
        if norm.running_mean is not None and norm.running_var is not None
    }


def _put(statistics: Statistics) -> None:
    for norm, (mean, var) in statistics.items():
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


@torch.no_grad()
def _measure(
    model: nn.Module, batches: Iterable[Tensor], run: Callable[[int, Tensor], object] | None = None
) -> Statistics:
    """The statistics of each layer that the batches reach; the network is left unchanged.

    `run` takes the number of a batch and its inputs; unless given, the whole network runs.
    """
    before = {norm: {name: x.clone() for name, x in norm.named_buffers()} for norm in _known(model)}
    momenta = {norm: norm.momentum for norm in before}
    found: Statistics = {}
    if not before:
        return found
    with eval_mode(model):
        try:
            for norm in before:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # PyTorch then keeps the equal-weighted mean
            for number, inputs in enumerate(batches):
                if run is None:
                    model(inputs.clone())  # a network may change its input in place
                else:
                    run(number, inputs)
            reached = {norm: values for norm, values in _known(model).items() if norm.num_batches_tracked}
            found = {norm: (mean.clone(), var.clone()) for norm, (mean, var) in reached.items()}
        finally:
            for norm, buffers in before.items():
                norm.momentum = momenta[norm]
                norm.load_state_dict(buffers, strict=False)
    return found
