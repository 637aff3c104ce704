"""What a run starts from: data, a float network and its blocks, or a sensitivity file; checked before any work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hawq.allocation import measures_plans
from hawq.experiment.artifacts import Store, write_json
from hawq.experiment.config.build import component_section, compose_parts
from hawq.experiment.config.demands import check_demands
from hawq.experiment.config.names import NOT_PART_OF_A_RESULT, section_of
from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.teachers import open_teacher
from hawq.malloc import keep_freed_memory
from hawq.records import (
    Block,
    FloatPart,
    Normalization,
    Preprocessing,
    Sensitivity,
    read_sensitivity,
    to_dict,
)
from hawq.search.settings import HELD_OUT, TRAIN

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from hawq.data import Splits
    from hawq.data.splits import RawImages
    from hawq.data.unlabelled import StoredImages
    from hawq.models import FloatModel


def prepare(settings: Settings) -> Inputs | Sensitivity:
    """Opens what the run starts from: a sensitivity file where one is given, else data and network.

    Raises ValueError or FileNotFoundError, with one sentence, for whatever does not fit.
    """
    if settings.allocation.sensitivity is None:
        return prepare_network(settings)
    path = Path(settings.allocation.sensitivity)
    if tuple(settings.options.stages) != ("allocation",):
        raise ValueError(
            f"allocation.sensitivity={path} stands for model and data, so stages={list(settings.options.stages)} "
            "cannot be done: give stages=[allocation]"
        )
    if not path.is_file():
        raise FileNotFoundError(f"allocation.sensitivity={path} does not exist: give the sensitivity.json of a run")
    sensitivity = read_sensitivity(path)
    if not sensitivity.rows:
        raise ValueError(f"allocation.sensitivity={path} names no block: give one row per block (docs/formats.md)")
    with component_section("bits", settings.bits):
        if measures_plans(settings.bits):
            field = "refine" if hasattr(settings.bits, "refine") else "evaluations"
            raise ValueError(
                f"{field}={getattr(settings.bits, field)} measures plans, which needs the model and data that "
                f"allocation.sensitivity={path} stands for: leave that out, or give bits=mixed bits.refine=0"
            )
        settings.bits.check(sensitivity.blocks, sensitivity.overhead_bytes)
    return sensitivity


def prepare_trained(overrides: Sequence[str], folder: Path) -> tuple[Settings, Inputs]:
    """Settings and inputs of a script that works on a trained network, by overrides of train.py.

    Raises ValueError or FileNotFoundError, with one sentence, as `prepare_network` does, and for an untrained network.
    """
    settings = Settings(folder=folder, resolved={}, command="", **compose_parts(overrides))
    inputs = prepare_network(settings)
    if inputs.model.normalization is None:
        raise ValueError("the network comes untrained: give model.checkpoint=... as for train.py")
    return settings, inputs


def claim(folder: Path, overrides: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Keeps a folder of a script's results for the overrides and facts that decide them.

    Raises ValueError where it holds those of others, so that none of them are taken for these.
    """
    deciding = {one for one in overrides if section_of(one) not in NOT_PART_OF_A_RESULT}
    stated = {"overrides": sorted(deciding), **facts}
    file = folder / "command.json"
    if file.is_file() and json.loads(file.read_text()) != stated:
        raise ValueError(f"--out={folder} holds results of other options, see {file.name} there: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, stated)


def prepare_network(settings: Settings) -> Inputs:
    """Opens the data, builds the network, finds its blocks, and checks that the bits fit them.

    Raises ValueError or FileNotFoundError, with one sentence, for whatever does not fit.
    """
    import torch

    from hawq.export import packed_overhead

    check_demands(settings)
    keep_freed_memory()
    options = settings.options
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with component_section("dataset", settings.dataset):
        splits = settings.dataset.open()
    torch.manual_seed(options.seed)
    with component_section("model", settings.model):
        model = settings.model.build(splits.num_classes)
    _refuse_absent_training_images(settings, splits, model)
    splits, judging = _judging_images(settings, splits, model)
    device = options.torch_device()
    model.network.to(device)
    if settings.model.channels_last:
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalization = model.normalization or settings.dataset.normalization
    prepare_image = settings.dataset.prepare(model.preprocessing, normalization)
    example = prepare_image(splits.test_images[0])[None].to(device)
    with component_section("model", settings.model):
        model.check_input(example)
    blocks, float_parts = _blocks(settings, model, example)
    about = _about(settings, normalization, model.preprocessing, example)
    overhead_bytes = packed_overhead(model.network, blocks, settings.quantizer, about)
    with component_section("bits", settings.bits):
        settings.bits.check(blocks, overhead_bytes)
    _check_plans(settings, blocks)
    return Inputs(
        dataset=settings.dataset,
        splits=splits,
        data_facts={
            "data": splits.identity(),
            "normalization": to_dict(normalization),
            "preprocessing": to_dict(model.preprocessing),
        },
        model_name=settings.model.name,
        model=model,
        normalization=normalization,
        blocks=blocks,
        float_parts=float_parts,
        overhead_bytes=overhead_bytes,
        about=about,
        device=device,
        workers=options.workers,
        store=Store(Path(options.outputs) / "cache"),
        teacher=open_teacher(settings, splits.num_classes, example, normalization),
        unlabelled=_unlabelled(settings, splits),
        judging=judging,
    )


def _check_plans(settings: Settings, blocks: Sequence[Block]) -> None:
    """Raises UserError where a validation asks for plans of a size that too few have."""
    from hawq.validation import wanted_plans

    wanted = settings.validate
    if "validate" in settings.options.stages and wanted.plans and wanted.target is not None:
        with component_section("validate", wanted):
            wanted_plans(wanted, settings.bits, blocks, wanted.target, settings.options.seed)


def _unlabelled(settings: Settings, splits: Splits) -> StoredImages | None:
    """The user's own images, where a score is to be measured on them."""
    from hawq import scoring
    from hawq.data.unlabelled import open_unlabelled

    which = settings.analysis.images
    if which in (scoring.TRAIN, scoring.TEST):
        return None
    with component_section("analysis", settings.analysis):
        return open_unlabelled(which, splits.test_images)


def _judging_images(
    settings: Settings, splits: Splits, model: FloatModel
) -> tuple[Splits, tuple[RawImages, np.ndarray | None] | None]:
    """The splits without the images that a search keeps for itself, and those that it judges plans on."""
    wanted = settings.search
    if not measures_plans(settings.bits) or wanted.images == TRAIN:
        return splits, None
    with component_section("search", wanted):
        if wanted.images == HELD_OUT:
            if model.normalization is not None:
                raise ValueError(
                    "images=held_out keeps images from the training of this run, and the network comes trained: give "
                    "images=train, or a path of images that it has not seen"
                )
            return _hold_out(splits, wanted.num_images, settings.options.seed)
        if wanted.judge != "kl":
            raise ValueError(f"judge={wanted.judge} needs labels, and images={wanted.images} has none: give judge=kl")
        from hawq.data.unlabelled import open_unlabelled

        return splits, (open_unlabelled(wanted.images, splits.test_images), None)


def _hold_out(splits: Splits, num_images: int, seed: int) -> tuple[Splits, tuple[RawImages, np.ndarray]]:
    """The splits without `num_images` training images drawn by the seed, and these with their labels."""
    import numpy as np

    from hawq.data import sample_indices
    from hawq.data.unlabelled import chosen

    total = len(splits.train_images)
    if num_images > total // 2:
        raise ValueError(f"num_images={num_images} of {total} training images would be held out: give at most half")
    out = np.sort(np.array(sample_indices(total, num_images, seed)))
    kept = np.setdiff1d(np.arange(total), out)
    images, labels = splits.train_images, splits.train_labels
    smaller = dataclasses.replace(splits, train_images=chosen(images, kept), train_labels=labels[kept])
    return smaller, (chosen(images, out), labels[out])


def _refuse_absent_training_images(settings: Settings, splits: Splits, model: FloatModel) -> None:
    stages = settings.options.stages
    if not len(splits.train_images) and (stages or model.normalization is None):
        raise ValueError(
            f"{settings.dataset.name} has no training images here, which {', '.join(stages) or 'training'} "
            "needs: add them, or evaluate a checkpoint alone with stages=[]"
        )


def _blocks(settings: Settings, model: FloatModel, example: Tensor) -> tuple[tuple[Block, ...], tuple[FloatPart, ...]]:
    """The network's blocks, traced with `example` (1, 3, H, W), and what stays float outside them."""
    from hawq.blocks import find_blocks
    from hawq.unquantized import unquantized

    try:
        blocks = find_blocks(model.network, example, granularity=settings.model.blocks)
        return blocks, unquantized(model.network, blocks, example)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"model {settings.model.name} cannot be analysed with images of {tuple(example.shape[2:])} ({reason}): "
            "give model.input_size or another model"
        ) from error


def _about(
    settings: Settings, normalization: Normalization, preprocessing: Preprocessing, example: Tensor
) -> dict[str, Any]:
    """What the packed file says about its network: enough to measure it again; `example` is one input (1, 3, H, W)."""
    own = dataclasses.replace(preprocessing, size=example.shape[-1])  # images in memory keep their own size
    names: dict[str, Any] = {"model": settings.model.name, "dataset": settings.dataset.name}
    if settings.model.source == "torchvision":
        names["source"] = settings.model.source
    if preprocessing.fixed_size:  # small embedded images were resized twice
        names["small_input_size"] = settings.model.small_input_size
    return {**names, **to_dict(normalization), "preprocessing": to_dict(own)}
