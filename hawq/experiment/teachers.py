"""Other networks that a run's fine-tuning learns from in place of its float network, opened before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hawq.experiment.artifacts import hash_tensors
from hawq.experiment.config.build import component_section
from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Teacher
from hawq.records import Normalization, to_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hawq.models import ModelSpec


def open_teacher(settings: Settings, num_classes: int, example: Tensor, given: Normalization) -> Teacher | None:
    """The mean of all networks in `teachers`, on the device of `example`; None where there are none.

    Args:
        example: one of the images that it will be shown, (1, 3, H, W).
        given: how these were normalised.

    Raises:
        FileNotFoundError, ValueError: a teacher that cannot be loaded, is not trained, or cannot take such images.
    """
    import torch

    from hawq.finetuning import Ensemble

    if not settings.teachers:
        return None
    with torch.random.fork_rng([]):  # a network draws weights before its own are loaded
        opened = [_open(name, spec, num_classes, example, given) for name, spec in settings.teachers.items()]
    return Teacher(Ensemble([network for network, _ in opened]), [facts for _, facts in opened])


def _open(
    name: str, spec: ModelSpec, num_classes: int, example: Tensor, given: Normalization
) -> tuple[nn.Module, dict[str, Any]]:
    """One teacher in eval mode, and what its answers depend on."""
    import torch

    from hawq.finetuning import Renormalized
    from hawq.models.float_model import why_refused

    with component_section(section := f"teachers.{name}", spec):
        model = spec.build(num_classes)
        if model.normalization is None:
            raise ValueError("checkpoint is not set, and an untrained network teaches nothing: give checkpoint=path")
    facts = {"name": spec.name, "source": spec.source, "weights": hash_tensors(model.network.state_dict())}
    network = Renormalized(model.network, model.normalization, given).to(example.device).eval().requires_grad_(False)
    if spec.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    reason = why_refused(network, example)
    if reason is not None:
        height, width = example.shape[-2:]
        raise ValueError(
            f"{section}: {spec.name} cannot take the model's images of {height}×{width} ({reason}): give "
            f"{section}.input_size={height}, where it can be built for that, or another teacher"
        )
    return network, facts | {"normalization": to_dict(model.normalization)}
