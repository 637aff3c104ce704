"""The verb: a quantised network whose roundings and steps keep what the float network computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hawq.progress import SILENT, Progress, Task
from hawq.quantization import LSQ, CarriedBatchNorm, Quantizer, attach, enable, input_batches, reached_blocks
from hawq.reconstruction.bias import correct_biases
from hawq.reconstruction.cache import Recorder, plan_store
from hawq.reconstruction.fisher import output_curvature
from hawq.reconstruction.optimizing import Data, reconstruct_unit
from hawq.reconstruction.passes import Passes
from hawq.reconstruction.settings import BRECQ, Reconstruction
from hawq.reconstruction.units import Unit, find_units
from hawq.records import BitPlan, Block
from hawq.resuming import Checkpoint

_LOG = logging.getLogger(__name__)
Row = dict[str, Any]


def reconstruct(
    model: nn.Module,
    blocks: Sequence[Block],
    plan: BitPlan,
    calibration: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    settings: Reconstruction | None = None,
    *,
    quantizer: Quantizer | None = None,
    seed: int = 0,
    classes: bool = True,
    checkpoint: Checkpoint | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    progress: Progress = SILENT,
    title: str = "reconstruction",
) -> tuple[nn.Module, list[Row]]:
    """A quantised copy of `model` that is closer to it than `quantize` comes, and a row per unit; nothing is labelled.

    Unit after unit, in the order of the forward pass, each weight is rounded up or down, and steps of activations are
    trained, so that the unit's outputs, from inputs that the quantised network gives it, are those of the float network
    from float inputs. Weights end on points of their grids. No unit ends with a larger error than rounding to nearest.

    Args:
        model: the float network; left unchanged.
        blocks, plan, quantizer: as for `quantize`.
        calibration: the images, as for `quantize`; the first `settings.num_samples` are used.
        settings: `Descent()`, `AdaRound()`, `BRECQ()` (unless given) or `QDrop()`.
        seed: of the order of images, of what is dropped, and of the random vectors for the curvature.
        classes: whether axis 1 of the network's outputs has scores of classes (`output_curvature`).
        checkpoint: where an unfinished reconstruction is stored after each unit, and found.
        on_row: called with every row: step (number of the unit), unit, error of rounding to nearest, error now, images.
        progress: advanced at every step under `title`, and by calibration and curvature.

    Raises:
        ValueError: as `quantize`.
    """
    settings = settings or BRECQ()
    given = input_batches(calibration, next(model.parameters()).device)
    images = _first(given, settings.num_samples, settings.batch_size)
    blocks, plan = reached_blocks(model, blocks, plan, images[0][:1])
    network = attach(model, blocks, plan, quantizer or LSQ())
    carried = CarriedBatchNorm(network, images if settings.batch_norm == "carried" else [])
    saved = checkpoint.load() if checkpoint else None
    if saved:
        network.load_state_dict(saved["network"])
    else:
        carry = settings.batch_norm == "carried"
        enable(network, list(plan.precisions), images, carry_batch_norm=carry, progress=progress)
    units = find_units(network, blocks, images[0], settings.units)
    work = _Work(model, network, settings, seed, images, *_passes(model, network, units, images, settings))
    rows: list[Row] = saved["rows"] if saved else []
    curvature: dict[str, Tensor] = saved["curvature"] if saved else work.curvature(units, classes, progress)
    each = max(settings.iterations, 1)
    with progress.task(title, len(units) * each, done=len(rows) * each) as task:
        for index in range(len(rows), len(units)):
            rows.append(work.row(index, units[index], curvature.get(units[index].name), task))
            on_row(rows[-1])
            if checkpoint:
                checkpoint.save({"network": network.state_dict(), "rows": rows, "curvature": curvature})
    carried.follow()
    return network, rows


def _passes(
    model: nn.Module, network: nn.Module, units: Sequence[Unit], images: Sequence[Tensor], settings: Reconstruction
) -> tuple[Passes, Passes]:
    """Those of the float and of the quantised network; together within the memory limit."""
    limit = settings.memory_limit_gib / 2
    return Passes(model, units, images, limit), Passes(network, units, images, limit)


def _first(batches: Sequence[Tensor], count: int, batch_size: int) -> list[Tensor]:
    """The first `count` images, in batches of `batch_size`."""
    return list(torch.cat(list(batches))[:count].split(batch_size))


@dataclass(frozen=True)
class _Work:
    """What all units share."""

    model: nn.Module
    network: nn.Module
    settings: Reconstruction
    seed: int
    images: list[Tensor]
    float_passes: Passes
    passes: Passes

    def curvature(self, units: Sequence[Unit], classes: bool, progress: Progress) -> dict[str, Tensor]:
        """The weights of the outputs of every unit; none without draws."""
        draws = self.settings.fisher_draws
        if not draws or not units:
            return {}
        return output_curvature(self.model, units, self.images, draws, self.seed, classes=classes, progress=progress)

    def row(self, index: int, unit: Unit, weights: Tensor | None, task: Task) -> Row:
        """Reconstructs unit number `index`; its row."""
        settings, module = self.settings, self.network.get_submodule(unit.name)
        data = self._data(unit, None if weights is None else weights.to(self.images[0].device))
        layers = [self.network.get_submodule(name) for name in unit.layers]
        seed = self.seed + 1_000_003 * (index + 1)
        before, after = reconstruct_unit(unit.name, module, layers, data, settings, seed, task)
        task.advance(0 if settings.iterations else 1)
        if settings.bias_correction:
            after = correct_biases(self.model, self.network, unit, data, after)
        _LOG.info("%s: error %.3g, %.3g when rounded to nearest", unit.name, after, before)
        return {"step": index + 1, "unit": unit.name, "nearest": before, "error": after, "images": len(data)}

    def _data(self, unit: Unit, weights: Tensor | None) -> Data:
        """The stored inputs and outputs of a unit, of as many images as fit."""
        settings, num_images = self.settings, sum(map(len, self.images))
        needs_exact = settings.drop > 0 or settings.bias_correction
        count, halve = plan_store(num_images, unit.elements * (1 + needs_exact), settings.memory_limit_gib)
        if count < num_images:
            _LOG.warning("%s: %d of %d images fit into the memory limit", unit.name, count, num_images)
        whole = count == num_images
        images = self.images if whole else _first(self.images, count, settings.batch_size)
        for passes in (self.float_passes, self.passes) if whole else ():
            passes.go_to(unit)
        exactly = Recorder(self.model, unit, images, halve, self.float_passes.run if whole else None)
        own = Recorder(self.network, unit, images, halve, self.passes.run if whole else None)
        exact, targets = exactly.inputs_and_outputs() if needs_exact else (None, exactly.outputs())
        return Data(own.inputs(), exact, targets, weights)
