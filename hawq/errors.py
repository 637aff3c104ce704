"""Errors that are told to a person in one sentence."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend; the message says what was found and what to do, and needs no traceback."""
