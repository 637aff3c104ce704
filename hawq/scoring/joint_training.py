"""One set of float weights trained at several bit-widths at once, whose steps the score learned_steps reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hawq.blocks import block_layers
from hawq.checks import check_range
from hawq.costs import plan_cost
from hawq.curvature import Loss
from hawq.curvature.memory import is_out_of_memory
from hawq.curvature.samples import Samples
from hawq.distributed import all_reduce_coalesced, broadcast_parameters
from hawq.errors import UserError
from hawq.modes import full_precision
from hawq.quantization import FakeQuantizer, Quantizer, batch_statistics, input_quantizer, quantize, weight_quantizer
from hawq.records import ACTIVATIONS, FLOAT_BITS, WEIGHTS, BitPlan, Block, Precision
from hawq.scoring.work import Place

_MOMENTUM = 0.9
_LENGTH, _SHARE = 1.0, 0.1  # most of a gradient: its length, and for a step, of the step itself
_FEWEST_BITS = 2  # that move the shared weights: the paper's; the gradient at one bit would drown all others
_MOST = {"iterations": 1_000_000, "batch_size": 1_000_000}


@dataclass(frozen=True)
class JointTraining:
    """How long, how fast and on how many images at a time the bit-widths are trained.

    Args:
        iterations: each is one forward and backward pass per bit-width and one update, for each half of the images.
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


class JointNetworks:
    """A quantised copy of a network at each bit-width; all copies share their float weights.

    Each copy has its own quantisers and its own batch norms, with statistics carried as `hawq.quantize` does. It stays
    in eval mode, so that every image counts by itself, however images are cut into batches.

    Args:
        model: the float network; left unchanged.
        blocks: traced.
        bit_widths: each is that of all blocks in one copy.
        calibration: inputs (N, ...), the same on every process.
        quantizer: with trained steps.
        activations: whether the blocks' input activations have these bits as well.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        bit_widths: Sequence[int],
        calibration: Sequence[Tensor],
        quantizer: Quantizer,
        *,
        activations: bool,
    ) -> None:
        if getattr(quantizer, "residuals", None) is not None:
            quantizer = replace(quantizer, residuals=None)  # type: ignore[type-var]
        self._blocks, self._networks = tuple(blocks), dict[int, nn.Module]()
        statistics = batch_statistics(model, calibration)
        for bits in bit_widths:
            precisions = {block.name: Precision(bits, bits if activations else FLOAT_BITS) for block in blocks}
            plan = BitPlan(precisions, "joint", plan_cost(blocks, precisions))
            made = quantize(model, blocks, plan, calibration, quantizer, statistics=statistics).eval()
            broadcast_parameters(made)
            self._networks[bits] = _sharing(made, next(iter(self._networks.values()), made))
        first = self._networks[bit_widths[0]]
        scales = {bits: _parameters_of(network, FakeQuantizer) for bits, network in self._networks.items()}
        norms = {bits: _parameters_of(network, _BatchNorm) for bits, network in self._networks.items()}
        own = {id(parameter) for parameter in (*scales[bit_widths[0]], *norms[bit_widths[0]])}
        shared = [p for p in first.parameters() if p.is_floating_point() and id(p) not in own]
        self.trained: dict[int, list[nn.Parameter]] = {
            bits: [*(shared if bits >= _FEWEST_BITS else []), *scales[bits], *norms[bits]] for bits in bit_widths
        }
        """Bit-width → what its pass gives gradients to."""
        self.scales = [scale for own in scales.values() for scale in own]
        """The steps of all bit-widths."""
        self.groups = [shared, *norms.values()]
        """The float weights, and the batch norms of each bit-width."""
        self.parameters: list[nn.Parameter] = [*self.scales, *(p for group in self.groups for p in group)]
        """All that is trained, none twice."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def gradient(self, bits: int, batches: Sequence[tuple[Tensor, Tensor]], loss: Loss, count: int) -> list[Tensor]:
        """The loss (1,), then ∂L/∂p of each p in `trained[bits]`: Σ over the samples given, over `count`.

        Args:
            bits: of the copy that is run.
            batches: (inputs (N, ...), targets) pairs.
            loss: mean loss over a batch.
            count: samples of all batches of all processes.
        """
        network, trained = self._networks[bits], self.trained[bits]
        totals = [trained[0].new_zeros(1), *map(torch.zeros_like, trained)]
        for inputs, targets in batches:
            with torch.enable_grad(), full_precision(inputs.device):
                value = loss(network(inputs.clone()), targets) * (len(inputs) / count)
                totals[0] += value.detach()
                if value.requires_grad:
                    found = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
                    for total, one in zip(totals[1:], found, strict=True):
                        total += one
        return totals

    def steps(self) -> dict[Place, float]:
        """The present steps of each block: Σ over its layers of the mean |s| over a layer's channels.

        Weights that layers share count once. Inputs count unless they are the image or nothing ever entered.
        """
        found: dict[Place, float] = {}
        for bits, network in self._networks.items():
            layers = dict(network.named_modules())
            for block in self._blocks:
                grids = [weight_quantizer(layer) for layer in block_layers(network, block)]
                inputs = [input_quantizer(layers[name]) for name in block.layers if name not in block.image_layers]
                found[block.name, WEIGHTS, bits] = _total(grids)
                if block.num_activations:
                    found[block.name, ACTIVATIONS, bits] = _total(inputs)
        return found


def _sharing(network: nn.Module, other: nn.Module) -> nn.Module:
    """`network` with the parameters of `other`, a copy of the same one, except in quantisers and batch norms."""
    others = dict(other.named_modules())
    for path, module in network.named_modules():
        if not isinstance(module, (FakeQuantizer, _BatchNorm)):
            for name, _ in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                setattr(module, name, getattr(others[path], name))
    return network


def _parameters_of(network: nn.Module, kind: type[nn.Module]) -> list[nn.Parameter]:
    """The parameters of all modules of one class."""
    owners = [module for module in network.modules() if isinstance(module, kind)]
    return list({id(p): p for owner in owners for p in owner.parameters() if p.is_floating_point()}.values())


def _total(grids: Sequence[FakeQuantizer | None]) -> float:
    """Σ of the mean step of each quantiser that is on, none counted twice."""
    used = {id(grid): grid for grid in grids if grid is not None and grid.enabled}.values()
    return sum(float(grid.get_parameter("scale").detach().abs().double().mean()) for grid in used)


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
