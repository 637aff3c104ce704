"""Components: classes that a config can name, under names that outlive a move of their files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def component(name: str, *, not_in_key: Sequence[str] = ()) -> Callable[[Class], Class]:
    """Declares a dataclass of settings as a component of the config.

    Args:
        name: "slot/option", say "solver/lanczos". The keys of artifacts are made of it, so it never changes; module and
            class may.
        not_in_key: fields that change no result, say a memory limit. Every other field is part of the key by itself.
    """

    def declare(cls: Class) -> Class:
        cls.component_name = name  # type: ignore[attr-defined]
        cls.component_not_in_key = tuple(not_in_key)  # type: ignore[attr-defined]
        return cls

    return declare


def component_name(cls: type) -> str | None:
    """The name that a class itself was declared with; None for other classes, also those derived from a component."""
    name: str | None = vars(cls).get("component_name")
    return name


def component_facts(instance: Any) -> dict[str, Any]:
    """What a result depends on in a component, JSON-ready: its declared name and its settings.

    A class that was not declared goes by its own name, with all its fields. Raises TypeError for fields that JSON
    cannot hold.
    """
    cls = type(instance)
    declared = component_name(cls)
    left_out = cls.component_not_in_key if declared else ()
    fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    kept = {name: value for name, value in fields.items() if name not in left_out}
    return {"component": declared or cls.__qualname__, **json.loads(json.dumps(kept))}
