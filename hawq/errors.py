"""Errors that are reported to the user in one sentence."""

from __future__ import annotations

from collections.abc import Collection

_MOST = 5  # names in a message


class UserError(ValueError):
    """A mistake that the user can correct.

    The message says what was found and what to do about it, so no traceback is needed. That of an error in a worker
    process of a `DataLoader`, which comes wrapped in a traceback, is unwrapped.
    """

    def __init__(self, message: str = "") -> None:
        cls = type(self)
        if message.startswith(f"Caught {cls.__name__} in "):  # as torch's ExceptionWrapper raises it again
            _, found, told = message.rpartition(f"\n{cls.__module__}.{cls.__qualname__}: ")
            message = told.rstrip() if found else message
        super().__init__(message)


def listed(names: Collection[str]) -> str:
    """Names in a row, as a message has them; a long list is cut and counted."""
    shown = ", ".join(list(names)[:_MOST])
    return f"{shown} and {len(names) - _MOST} more" if len(names) > _MOST else shown
