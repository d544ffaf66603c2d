"""Errors that a user can act on: what was wrong, where, and what to do.

Scripts print these without a traceback and exit with code 2.
"""

from __future__ import annotations

from collections.abc import Sequence


class EmodistillError(Exception):
    """Base of all errors whose message is meant for the user."""


class InputError(EmodistillError, ValueError):
    """A file, field or flag holds something that can't be used."""


MAX_LINES = 20
"""Bad lines that one message names; whoever mends so many knows what is wrong with the rest."""


def refuse(problems: Sequence[str], advice: str = "") -> None:
    """Refuse what has `problems`, all of them in one message, a line each.

    Args:
      advice: what to do about them, after the last.

    Raises:
      InputError: there is a problem.
    """
    if not problems:
        return
    lines = [*problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"… and {len(problems) - MAX_LINES:,} more.")
    raise InputError("\n".join([*lines, *filter(None, [advice])]))


class StaleInputError(EmodistillError):
    """A finished or half-finished stage was made from other inputs than those now on disk."""


class ApiError(EmodistillError):
    """A language-model API refused, or stayed out of reach, for good."""


class StoppedError(EmodistillError):
    """A stage was stopped before its end, by the user or by a ceiling; finished work is kept."""


class DivergenceError(EmodistillError):
    """Training met a loss that is not finite; the last good checkpoint is kept."""
