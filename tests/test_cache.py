"""The cache: keys are made of declared names and settings, and no setting is read past its key."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest
from runs import compose_here

from hawq.components import component, component_facts
from hawq.experiment.artifacts import fingerprint
from hawq.experiment.config.build import build_settings
from hawq.experiment.config.options import COMPONENTS
from hawq.experiment.stages.cache import KeyedSettings
from hawq.experiment.table import left_out, wanted_stages

SOURCE = """
import dataclasses
from hawq.components import component

@component("solver/made_up", not_in_key=("memory",))
@dataclasses.dataclass(frozen=True)
class {name}:
    tolerance: float = 0.5
    memory: float | None = None
{more}
"""


def made_in(module: str, name: str = "Solver", more: str = "", **settings: Any) -> Any:
    """An object of a settings class that lives in a module of that name."""
    made = ModuleType(module)
    sys.modules[module] = made
    exec(SOURCE.format(name=name, more=more), made.__dict__)
    return getattr(made, name)(**settings)


def key(instance: Any) -> str:
    return fingerprint({"solver": component_facts(instance)})


def test_a_class_that_moves_keeps_its_artifacts() -> None:
    assert key(made_in("one_place")) == key(made_in("another.place", "Renamed"))


def test_a_new_field_enters_the_key_by_itself() -> None:
    plain, grown = made_in("one_place"), made_in("one_place", more="    patience: int = 3")
    assert key(plain) != key(grown) != key(dataclasses.replace(grown, patience=4))


def test_what_changes_no_result_is_not_in_the_key() -> None:
    assert key(made_in("one_place", memory=3.0)) == key(made_in("one_place"))
    assert key(made_in("one_place", tolerance=0.1)) != key(made_in("one_place"))


def test_a_subclass_does_not_pass_for_its_parent() -> None:
    @component("solver/parent")
    @dataclasses.dataclass
    class Parent:
        size: int = 1

    class Child(Parent):
        pass

    assert component_facts(Parent())["component"] == "solver/parent"
    assert component_facts(Child())["component"].endswith("Child")


def test_every_component_of_the_config_is_declared_for_its_section() -> None:
    settings = build_settings(compose_here())
    for name in COMPONENTS:
        assert component_facts(getattr(settings, name))["component"].split("/")[0] == name


def test_a_stage_cannot_read_past_its_key() -> None:
    keyed = KeyedSettings(build_settings(compose_here("seed=7")), ("solver", "seed"))
    assert keyed.seed == 7 and keyed.facts() == {"solver": component_facts(keyed.solver), "seed": 7}
    for name in ("quantizer", "options", "finetune"):
        with pytest.raises(AttributeError, match=f"the key does not hold {name}"):
            getattr(keyed, name)


@pytest.mark.parametrize(
    ("selected", "names"),
    [
        ([], ["float_network"]),
        (["validate"], ["float_network", "analysis", "validate"]),
        (["allocation"], ["float_network", "analysis", "allocation"]),
        (["export"], ["float_network", "analysis", "allocation", "reconstruction", "tuning", "finetune", "export"]),
        (
            ["report", "validate"],
            [
                *("float_network", "analysis", "validate", "allocation", "reconstruction", "tuning"),
                *("finetune", "export", "report"),
            ],
        ),
    ],
)
def test_stages_bring_what_they_need(selected: list[str], names: list[str]) -> None:
    assert [stage.name for stage in wanted_stages(selected)] == names


@pytest.mark.parametrize(
    ("changed", "selected", "asked", "names"),
    [
        ("float_network", ["finetune"], [], ["analysis", "allocation"]),
        ("float_network", ["finetune"], ["reconstruction"], ["analysis", "allocation", "reconstruction"]),
        ("analysis", ["export"], ["reconstruction"], ["analysis", "allocation", "reconstruction", "finetune"]),
        ("analysis", ["validate"], ["reconstruction"], ["analysis"]),
        ("finetune", ["finetune"], ["reconstruction"], []),
        ("finetune", ["report"], [], ["finetune", "export"]),
        ("validate", ["validate", "report"], [], []),
        ("analysis", ["analysis", "allocation", "finetune"], [], []),
        ("reconstruction", ["finetune"], [], ["reconstruction"]),
        ("reconstruction", ["finetune"], ["reconstruction", "tuning"], ["reconstruction", "tuning"]),
        ("tuning", ["finetune"], ["reconstruction", "tuning"], ["tuning"]),
    ],
)
def test_what_depends_on_a_new_result_must_be_selected(
    changed: str, selected: list[str], asked: list[str], names: list[str]
) -> None:
    assert left_out(changed, selected, asked) == names
