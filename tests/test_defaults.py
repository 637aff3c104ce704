"""One set of defaults: what an option of the config states is what its class does by itself.

The rule: each key that conf/ states equals the default of the field it sets. An option that sets a class up in another
way is a preset: it stands in `PRESETS` with the keys that make it one, which must differ, while all others match.
Options of `model` are networks of one class: their name, their weights and the size of their inputs are their own.
Keys that are left to the command line (`???`) or to other keys (`${...}`) state no default.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from typing import Any

import pytest
import yaml
from runs import REPOSITORY

CONF = REPOSITORY / "conf"
OF_A_NETWORK = {"name", "checkpoint", "small_input_size"}
PRESETS = {
    "bits/hawq_v2": {"score"},
    "bits/random": {"order"},
    "bits/reverse": {"order"},
    "solver/trace": {"curvature", "quantity", "tolerance"},
}
ROOT = yaml.safe_load((CONF / "config.yaml").read_text())


def read_options() -> dict[str, dict[str, Any]]:
    """ "group/option" → its keys, for every option of a group; deeper ones, the papers', are commands kept as files."""
    paths = {path.relative_to(CONF).with_suffix("").as_posix(): path for path in CONF.rglob("*.yaml")}
    found = {name: yaml.safe_load(path.read_text()) for name, path in paths.items() if name.count("/") == 1}
    return {name: node for name, node in found.items() if isinstance(node, dict) and "_target_" in node}


OPTIONS = read_options()
NODES = OPTIONS | {key: node for key, node in ROOT.items() if isinstance(node, dict) and "_target_" in node}


def defaults_of(target: str) -> dict[str, Any]:
    """Field → default of a dataclass, for the fields that have one."""
    fields = dataclasses.fields(pkgutil.resolve_name(target))
    plain = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
    return plain | made


def comparable(value: Any) -> Any:
    """Tuples as the lists that YAML has; a mapping without its nulls, which stand for nothing given."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if item is not None}
    return [comparable(item) for item in value] if isinstance(value, list | tuple) else value


def different_keys(node: dict[str, Any]) -> set[str]:
    """Keys that a node states and that are not what its class has by itself."""
    defaults = defaults_of(node["_target_"])
    own = OF_A_NETWORK if node["_target_"] == "hawq.models.ModelSpec" else set()
    stated = {key: value for key, value in node.items() if key in defaults and not str(value).startswith(("???", "${"))}
    return {key for key, value in stated.items() if key not in own and comparable(value) != comparable(defaults[key])}


@pytest.mark.parametrize("name", NODES)
def test_an_option_states_the_defaults_of_its_class(name):
    assert different_keys(NODES[name]) == PRESETS.get(name, set())


def test_presets_are_options():
    assert set(PRESETS) <= set(OPTIONS)


@pytest.mark.parametrize("target", sorted({node["_target_"] for node in OPTIONS.values()}))
def test_every_class_has_an_option_that_is_no_preset(target):
    """So that its defaults stand in the menu; networks are options of one class that differ by name."""
    assert any(node["_target_"] == target and name not in PRESETS for name, node in OPTIONS.items())


def test_the_check_sees_a_difference():
    node = dict(OPTIONS["finetune/default"])
    assert different_keys(node | {"distillation": 0.0, "epochs": 11}) == {"distillation", "epochs"}
    assert different_keys(dict(OPTIONS["bits/mixed"]) | {"limits": {"bops": 3.0}}) == {"limits"}
