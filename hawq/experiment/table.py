"""The stages of a run: what each is called, what it needs, what it is for. A new stage is one row and one file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One row: the stage's function is `hawq.experiment.stages.<name>.<name>`.

    Args:
        name: of the file, the function, the section of the config, the folder in the cache, and the metrics.
        needs: the stages whose results the function takes, each as the argument of that name.
        about: one line for whoever looks for a stage.
        sections: of the config that its errors may be about, beside the one with its name.
        optional: whether it makes nothing unless an option asks for it, so that nobody must name it.
    """

    name: str
    needs: tuple[str, ...]
    about: str
    sections: tuple[str, ...] = ()
    optional: bool = False


STAGES = (
    Stage("float_network", (), "the float network: loaded, or trained first; always there"),
    Stage("analysis", ("float_network",), "sensitivity of every block", ("solver",)),
    Stage("validate", ("float_network", "analysis"), "how well each score predicts the truth", ("solver",)),
    Stage("allocation", ("float_network", "analysis"), "bit-widths of every block", ("bits", "search")),
    Stage(
        "reconstruction",
        ("float_network", "analysis", "allocation"),
        "quantised networks without training labels",
        optional=True,
    ),
    Stage(
        "tuning",
        ("float_network", "analysis", "allocation", "reconstruction"),
        "reconstructed networks, trained around their codes by their outputs",
        optional=True,
    ),
    Stage("finetune", ("float_network", "analysis", "allocation", "tuning"), "quantised, fine-tuned networks"),
    Stage("export", ("float_network", "finetune"), "packed files, and their accuracy"),
    Stage("deploy", ("float_network", "finetune", "export"), "files that a runtime computes in integers"),
    Stage("report", ("float_network", "analysis", "allocation", "finetune", "export"), "report.json, tables, figures"),
)

NAMES = tuple(stage.name for stage in STAGES)


def wanted_stages(selected: Collection[str]) -> tuple[Stage, ...]:
    """The stages that a selection of names needs, in order; the float network is always among them."""
    names = {"float_network", *selected}
    for stage in reversed(STAGES):
        if stage.name in names:
            names.update(stage.needs)
    return tuple(stage for stage in STAGES if stage.name in names)


def left_out(changed: str, selected: Collection[str], asked: Collection[str] = ()) -> list[str]:
    """Stages that a selection needs but does not name, and whose results are gone once `changed` is made again.

    Of the optional ones only `changed` itself, and those that the options have `asked` for.
    """
    outdated = {changed}
    for stage in STAGES:
        if outdated & {*stage.needs}:
            outdated.add(stage.name)
    wanted = [stage for stage in wanted_stages(selected) if stage.name in outdated and stage.name not in selected]
    needed = {changed, *asked}
    return [stage.name for stage in wanted if stage.needs and (stage.name in needed or not stage.optional)]
