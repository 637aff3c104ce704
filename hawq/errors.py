"""Errors that are reported to the user in one sentence."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can correct.

    The message says what was found and what to do about it, so no traceback is needed.
    """
