"""Compiled programs: how many there are, and how they outlive the process, so that a second run of
a stage need not compile again."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from pathlib import Path

import jax

MIN_COMPILE_S = 0.5
"""Programs that take longer to compile are kept; JAX's own bound of 1 s leaves out many of ours."""


def keep_programs() -> None:
    """Let XLA keep what it compiles in the user's cache folder.

    `JAX_COMPILATION_CACHE_DIR` names another folder; set to an empty string it keeps nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "emodistill" / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


class _Noted:
    count = 0


def note_program() -> None:
    """Called within a function that is compiled: it runs once for each program made of it."""
    _Noted.count += 1


def num_programs() -> int:
    """How many programs have been made so far of functions that note it."""
    return _Noted.count


class Static:
    """A static argument of programs: one object for each value, which JAX tells apart by identity.

    At every call JAX asks for the hash of such an argument, and compares it with those that it
    knows; for a model's graph the hash alone takes 0.4 ms.
    """

    def __init__(self, value: Hashable) -> None:
        self.value = value

    @classmethod
    @functools.cache
    def of(cls, value: Hashable) -> Static:
        return cls(value)
