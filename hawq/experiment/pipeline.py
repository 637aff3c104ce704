"""A whole run: the walk through the table of stages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import yaml

from hawq.experiment.config.build import component_section
from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.metrics import MetricsLog
from hawq.experiment.run import Run
from hawq.experiment.table import Stage, wanted_stages
from hawq.files import write_whole
from hawq.records import Sensitivity
from hawq.report import headline, read_run, write_page


def run_stages(settings: Settings, inputs: Inputs | Sensitivity) -> dict[str, Any]:
    """Walks through the stages that were asked for, and says where everything lies.

    Returns stage → result. Raises UserError when a stage was left out whose result is not in the cache.
    """
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    with MetricsLog.open(folder, settings.tracking, settings.resolved) as log:
        write_whole(folder / "config.yaml", yaml.safe_dump(settings.resolved, sort_keys=False).encode())
        if isinstance(inputs, Sensitivity):
            stages, results = wanted_stages(settings.options.stages), {"float_network": None, "analysis": inputs}
        else:
            stages, results = wanted_stages(settings.options.stages), {}
        run = Run(settings, inputs, log)  # type: ignore[arg-type]
        for stage in stages:
            if stage.name not in results:
                results[stage.name] = call(stage, run, results)
        page = write_page(folder, settings.command)
        log.page("report", page)
    _dismiss_others()
    print(f"\n{headline(read_run(folder))}\nReport: {page}")
    return results


def call(stage: Stage, run: Run, results: dict[str, Any]) -> Any:
    """A stage's result: its function is named as the stage, and so is its file."""
    function: Callable[..., Any] = getattr(import_module(f"hawq.experiment.stages.{stage.name}"), stage.name)
    with ExitStack() as sections:
        for section in (*stage.sections, stage.name):
            if getattr(run.settings, section, None) is not None:  # a sensitivity file stands for most of them
                sections.enter_context(component_section(section, getattr(run.settings, section)))
        return function(run, **{name: results[name] for name in stage.needs})


def assist(inputs: Inputs | Sensitivity) -> None:
    """What every process but the first does: its share of analysis and training, when the first one comes to them."""
    while work := _next_work():
        work(inputs)


def _next_work() -> Callable[[Any], object] | None:
    """The work that the first process comes to, None at its end. Leaves with it when it has ended with an error."""
    from hawq.distributed import broadcast

    try:
        work: Callable[[Any], object] | None = broadcast(None)
        return work
    except RuntimeError as error:
        raise SystemExit(1) from error


def _dismiss_others() -> None:
    """Lets the other processes go, where there are any."""
    if "torch.distributed" in sys.modules:
        from hawq.distributed import broadcast

        broadcast(None)
