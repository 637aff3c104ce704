"""The joint training of all bit-widths, in which each layer learns a step for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hawq.checks import check_range
from hawq.curvature import Loss
from hawq.curvature.memory import is_out_of_memory
from hawq.curvature.samples import Samples
from hawq.distributed import all_reduce_coalesced
from hawq.errors import UserError
from hawq.quantization import Quantizer
from hawq.scoring.joint_networks import JointNetworks

_MOMENTUM = 0.9
_LENGTH, _SHARE = 1.0, 0.1  # most of a gradient: its length, and for a step, of the step itself
_MOST = {"iterations": 1_000_000, "batch_size": 1_000_000}


@dataclass(frozen=True)
class JointTraining:
    """How all bit-widths are trained together, so that each layer learns a step for each of them.

    As in LIMPQ (2203.08368) there is one set of float weights, and one set of steps and batch norms per bit-width. An
    iteration is one forward and backward pass per bit-width, with all layers at it, on the same batch; gradients of the
    weights add up; then comes one update by SGD, with LSQ's gradient scale. It departs from the paper in this:

    - It is short, tens of iterations, not epochs. So steps start at the least squared error (in the published code at
      (|mean| + 3σ)/2^(b−1)), and in the end most of them are within a few percent of where they began.
    - Gradients are clipped so that it is stable from the first iteration on: those of the float weights, and of the
      batch norms of each bit-width, at length 1; that of a step at a tenth of the step. The published code clips every
      entry at ±1.
    - Batch norm normalises by statistics carried on the calibration inputs, not by those of the batch.
    - The further pass of the published code, with bits drawn at random for each layer, is left out.
    - One bit learns steps of its own, and does not move the shared weights.

    Args:
        iterations: for each half of the images.
        lr: learning rate of SGD with momentum 0.9 at the start; it falls to zero along a cosine.
        batch_size: images in a batch, of all processes together; at most half of those that there are.
        seed: of the order of the images.

    Raises:
        ValueError: a value out of range.
    """

    iterations: int = 50
    lr: float = 0.01
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self.iterations, self.lr, self.batch_size)


def check_training(iterations: int, lr: float, batch_size: int, prefix: str = "") -> None:
    """Raises ValueError for values out of range; `prefix` precedes the names of the fields."""
    check_range(f"{prefix}iterations", iterations, least=1, most=_MOST["iterations"])
    check_range(f"{prefix}lr", lr, above=0, most=1)
    check_range(f"{prefix}batch_size", batch_size, least=1, most=_MOST["batch_size"])


def refuse_fixed_steps(quantizer: Quantizer, *, activations: bool) -> None:
    """Raises UserError for a quantiser whose steps are not trained."""
    made = [quantizer.weight(8), *([quantizer.activation(8)] if activations else [])]
    if not all(isinstance(getattr(one, "scale", None), nn.Parameter) for one in made):
        raise UserError(
            f"quantizer={quantizer.name} trains no steps, and score learned_steps reads nothing else: "
            "give quantizer=lsq, or another score, say kl"
        )


class Trainer:
    """The joint training of one half of the images.

    One iteration: for each bit-width a forward and backward pass on the same batch; gradients of the shared weights add
    up over the bit-widths; then one update of everything.

    Args:
        networks: trained in place.
        samples: of all processes; those of this one, in batches that fit its memory.
        loss: mean loss over a batch.
        settings: see `JointTraining`.
        half: 0 for samples of even number, 1 for those of odd number.
    """

    def __init__(
        self, networks: JointNetworks, samples: Samples, loss: Loss, settings: JointTraining, half: int
    ) -> None:
        self._networks, self._samples, self._loss, self._settings = networks, samples, loss, settings
        self._half, self.iteration = half, 0
        self._optimizer = torch.optim.SGD(networks.parameters, lr=settings.lr, momentum=_MOMENTUM)

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from, on the CPU."""
        momenta = [self._optimizer.state[p].get("momentum_buffer") for p in self._networks.parameters]
        return {
            "half": self._half,
            "iteration": self.iteration,
            "parameters": [p.detach().cpu().clone() for p in self._networks.parameters],
            "momenta": [m if m is None else m.cpu().clone() for m in momenta],
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, bit for bit."""
        self.iteration = state["iteration"]
        for p, value, momentum in zip(self._networks.parameters, state["parameters"], state["momenta"], strict=True):
            p.copy_(value)
            self._optimizer.state[p]["momentum_buffer"] = None if momentum is None else momentum.to(p.device)

    def advance(self) -> float:
        """One iteration; the mean loss over the bit-widths before it. Raises UserError where it is not finite."""
        settings, parameters = self._settings, self._networks.parameters
        wanted = self._batch()
        first = self._samples.first
        own = [i - first for i in wanted if first <= i < first + self._samples.local_count]
        loss = parameters[0].new_zeros(1)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for bits, trained in self._networks.trained.items():
            value, *found = self._until_it_fits(bits, own, len(wanted))
            loss += value
            for parameter, gradient in zip(trained, found, strict=True):
                assert parameter.grad is not None
                parameter.grad += gradient
        _all_reduce([loss, *(p.grad for p in parameters if p.grad is not None)])
        self._check(float(loss))
        self._clip()
        for group in self._optimizer.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * self.iteration / settings.iterations))
        self._optimizer.step()
        self.iteration += 1
        return float(loss) / len(self._networks.trained)

    def _clip(self) -> None:
        """Keeps one bit-width from drowning the others, and a fine step from leaping."""
        for group in self._networks.groups:
            nn.utils.clip_grad_norm_(group, _LENGTH)
        for scale in self._networks.scales:
            most = _SHARE * scale.detach().abs()
            assert scale.grad is not None
            scale.grad.clamp_(-most, most)

    def _batch(self) -> list[int]:
        """The samples of this iteration, by their number among all: a function of seed, half and iteration."""
        own = range(self._half, self._samples.count, 2)
        size = min(self._settings.batch_size, len(own))
        epoch, place = divmod(self.iteration, len(own) // size)
        seed = (2 * self._settings.seed + self._half) * 1_000_003 + epoch
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed)).tolist()
        return [own[i] for i in order[place * size : (place + 1) * size]]

    def _until_it_fits(self, bits: int, own: Sequence[int], count: int) -> list[Tensor]:
        """`JointNetworks.gradient` of this process' samples; when memory runs out, with batches of half the size."""
        while True:
            try:
                return self._networks.gradient(bits, self._samples.picked(own), self._loss, count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._samples.largest_batch <= 1:
                    raise UserError("memory runs out with a single image in a batch: use a smaller input") from error
            self._samples.cut(self._samples.largest_batch // 2)

    def _check(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        if self.iteration == 0:
            raise UserError(
                "the loss of the quantised network is not finite: nothing can be learned, check the weights"
            )
        raise UserError(
            f"the joint training for score learned_steps diverged in iteration {self.iteration + 1} of "
            f"{self._settings.iterations} with a learning rate of {self._settings.lr:g}: "
            f"give a lower one, say learned_steps_lr={self._settings.lr / 10:g}"
        )


def _all_reduce(tensors: Sequence[Tensor]) -> None:
    """The sums over all processes; tensors of one dtype are sent as one."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        all_reduce_coalesced([tensor for tensor in tensors if tensor.dtype == dtype])
