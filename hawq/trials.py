"""What whole plans do to a network without training, measured image by image with forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hawq.costs import plan_cost
from hawq.errors import UserError
from hawq.modes import analysis_mode
from hawq.quantization import LSQ, Quantizer, batch_statistics, quantize
from hawq.records import BitPlan, Block, Precision
from hawq.structures import main_output

Images = tuple[Tensor, Tensor | None]  # inputs (N, ...) and labels (N,), None without labels


@dataclass(frozen=True)
class Outcomes:
    """What a network does with each of N images; all on the CPU in float64.

    Args:
        kl: KL(float outputs ‖ its outputs) of each image (N,), in nats, softened where the trials are; 0 for the float
            network.
        plain_kl: the same at T = 1 (N,).
        loss: cross-entropy of each image (N,); None without labels.
        hits: 1 where the largest output is at the label, else 0, (N,); None without labels.
    """

    kl: Tensor
    plain_kl: Tensor
    loss: Tensor | None
    hits: Tensor | None

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy in percent; None without labels."""
        return None if self.hits is None else 100 * float(self.hits.mean())


class Trials:
    """Quantises a network by one plan after the other and measures each on the same images.

    Batch norm is carried on the calibration inputs (`hawq.quantize`). The float network runs once.

    Args:
        model: the float network; left unchanged.
        blocks: from `find_blocks`, traced.
        images: (inputs (N, ...), labels (N,) or None) batches on the model's device.
        calibration: batches of inputs (N, ...) that activation ranges and batch norm's statistics are taken from.
        quantizer: LSQ unless given.
        temperature: T; the KL is that of the softened outputs softmax(z/T), times T² (Hinton et al., 1503.02531).
        carry_batch_norm: see `hawq.quantize`.

    Raises:
        UserError: fewer than two images, or no finite outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        images: Sequence[Images],
        calibration: Sequence[Tensor],
        quantizer: Quantizer | None = None,
        *,
        temperature: float = 1.0,
        carry_batch_norm: bool = True,
    ) -> None:
        if sum(len(inputs) for inputs, _ in images) < 2:
            raise UserError("plans are measured on at least two images: their differences give the standard error")
        self._model, self._blocks, self._images = model, tuple(blocks), list(images)
        self._calibration, self._quantizer = list(calibration), quantizer or LSQ()
        self._temperature, self._carry = temperature, carry_batch_norm
        self._statistics = batch_statistics(model, self._calibration) if carry_batch_norm else None
        self._float = [self._log_probabilities(outputs) for outputs in self._outputs(model)]
        self.float = self.outcomes(model)
        """Outcomes of the float network itself; its KL is 0."""

    @property
    def temperature(self) -> float:
        """T of the softened KL."""
        return self._temperature

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the network."""
        return self._blocks

    def network(self, precisions: Mapping[str, Precision]) -> nn.Module:
        """A quantised copy of the network: block name → bits."""
        plan = BitPlan(dict(precisions), "trial", plan_cost(self._blocks, precisions))
        return quantize(
            self._model,
            self._blocks,
            plan,
            self._calibration,
            self._quantizer,
            carry_batch_norm=self._carry,
            statistics=self._statistics,
        )

    def measure(self, precisions: Mapping[str, Precision]) -> Outcomes:
        """Outcomes of the network quantised by block name → bits. Raises UserError where outputs are not finite."""
        return self.outcomes(self.network(precisions))

    def outcomes(self, network: nn.Module) -> Outcomes:
        """Outcomes of any network with the same outputs. Raises UserError where they are not finite."""
        return _joined(list(self.by_batch(network)))

    def by_batch(self, network: nn.Module) -> Iterator[Outcomes]:
        """`outcomes`, one batch of images after the other, each computed when it is asked for."""
        for outputs, expected, (_, labels) in zip(self._outputs(network), self._float, self._images, strict=True):
            found = self._log_probabilities(outputs)
            kls = {t: divergence(expected[t], found[t], t) for t in found}
            loss = hits = None
            if labels is not None:
                loss = per_image(nn.functional.cross_entropy(outputs, labels, reduction="none"))
                hits = per_image(outputs.argmax(1) == labels)
            yield Outcomes(kls[self._temperature], kls[1.0], loss, hits)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Images in each batch."""
        return tuple(len(inputs) for inputs, _ in self._images)

    def _log_probabilities(self, outputs: Tensor) -> dict[float, Tensor]:
        """T → log softmax(z/T) of outputs z (N, classes, ...), for the softened KL and the plain one."""
        return {t: log_probabilities(outputs, t) for t in {self._temperature, 1.0}}

    def _outputs(self, network: nn.Module) -> Iterator[Tensor]:
        """Outputs (N, classes) of each batch, in eval mode and full float32."""
        for inputs, _ in self._images:
            with analysis_mode(network, []), torch.no_grad():
                outputs = main_output(network(inputs))
            if not bool(outputs.isfinite().all()):
                raise UserError("the outputs of the network are not finite: its plans cannot be measured")
            yield outputs


def log_probabilities(outputs: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z/T) over the classes of outputs z (N, classes, ...), float64.

    Raises UserError for outputs without several classes, which are no distribution.
    """
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        shape = tuple(outputs.shape)
        raise UserError(
            f"the network's outputs have shape {shape}: KL needs (N, classes, ...) with at least two classes"
        )
    return nn.functional.log_softmax(outputs.double() / temperature, dim=1)


def divergence(expected: Tensor, found: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(p ‖ q) of each image (N,), in nats, on the CPU; log p and log q (N, classes, ...), mean of positions."""
    return per_image(temperature**2 * (expected.exp() * (expected - found)).sum(1).clamp(min=0.0))


def per_image(values: Tensor) -> Tensor:
    """(N, ...) → (N,) by the mean over whatever an image has several of; float64, on the CPU."""
    return values.double().reshape(len(values), -1).mean(1).cpu()


def _joined(parts: Sequence[Outcomes]) -> Outcomes:
    losses = [part.loss for part in parts if part.loss is not None]
    hits = [part.hits for part in parts if part.hits is not None]
    return Outcomes(
        torch.cat([part.kl for part in parts]),
        torch.cat([part.plain_kl for part in parts]),
        torch.cat(losses) if losses else None,
        torch.cat(hits) if hits else None,
    )


def paired(values: Tensor, others: Tensor) -> tuple[float, float]:
    """Mean of values − others, both (N,), and its standard error. Raises ValueError for other shapes."""
    if values.shape != others.shape or values.dim() != 1 or len(values) < 2:
        shapes = f"{tuple(values.shape)} and {tuple(others.shape)}"
        raise ValueError(f"a paired difference needs two equal shapes (N,), N at least 2, {shapes} were given")
    return mean_with_error(values.double() - others.double())


def mean_with_error(values: Tensor) -> tuple[float, float]:
    """Mean of (N,) and its standard error; an error of 0 for a single value."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), error
