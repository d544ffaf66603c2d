"""Errors that a user can act on: what was wrong, where, and what to do.

Scripts print these without a traceback and exit with code 2.
"""


class EmodistillError(Exception):
    """Base of all errors whose message is meant for the user."""


class InputError(EmodistillError, ValueError):
    """A file, field or flag holds something that can't be used."""


class StaleInputError(EmodistillError):
    """A finished or half-finished stage was made from other inputs than those now on disk."""


class ApiError(EmodistillError):
    """A language-model API refused, or stayed out of reach, for good."""


class StoppedError(EmodistillError):
    """A stage was stopped before its end, by the user or by a ceiling; finished work is kept."""


class DivergenceError(EmodistillError):
    """Training met a loss that is not finite; the last good checkpoint is kept."""
