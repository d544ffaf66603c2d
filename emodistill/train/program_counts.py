"""What a compiled GPU program launches: kernels, and what it sends between devices.

A launch takes the host a few microseconds, so that thousands of small kernels cost more than their
arithmetic. XLA's optimised program is text; a kernel is one instruction in it, and a loop counts as
often as it turns.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from emodistill.model.attention_forms import SCOPE

UNKNOWN_TURNS = 16
"""Turns that are assumed of loops whose number of turns the data decides: key blocks that a group
of query blocks sees, about half of a row of 4,096 tokens."""

_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "async-update"),
)
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "u4": 4, "s4": 4}
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """What one kind of collective does in a program, per device."""

    number: int
    num_bytes: int
    """Of their results together."""


class ProgramCounts(NamedTuple):
    """What one call of a program launches on each device."""

    num_kernels: int
    """Copies and collectives included."""
    num_attention_kernels: int
    collectives: Mapping[str, Collective]
    """By kind, such as `all-gather`."""

    def __add__(self, other: object) -> ProgramCounts:
        """The counts of two programs that run one after the other."""
        if not isinstance(other, ProgramCounts):
            return NotImplemented
        kinds = sorted({*self.collectives, *other.collectives})
        none = Collective(0, 0)
        pairs = {k: (self.collectives.get(k, none), other.collectives.get(k, none)) for k in kinds}
        return ProgramCounts(
            self.num_kernels + other.num_kernels,
            self.num_attention_kernels + other.num_attention_kernels,
            {
                k: Collective(a.number + b.number, a.num_bytes + b.num_bytes)
                for k, (a, b) in pairs.items()
            },
        )


class _Instruction(NamedTuple):
    opcode: str
    shape: str
    line: str

    def named(self, attribute: str) -> str | None:
        """The computation that `attribute` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.line)
        return found[1] if found else None


def count_kernels(text: str, unknown_turns: int = UNKNOWN_TURNS) -> ProgramCounts:
    """The counts of an optimised program (`compiled.as_text()`).

    Args:
      unknown_turns: turns of loops whose number of turns isn't in the program.
    """
    computations, entry = _computations(text)
    totals = _total(computations, entry, unknown_turns)
    collectives = {
        kind: Collective(totals[kind], totals[f"{kind} bytes"])
        for kind in _COLLECTIVES
        if totals[kind]
    }
    return ProgramCounts(totals["kernels"], totals["attention"], collectives)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Every computation's instructions by its name, and the name of the first to run."""
    found: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = found[opened[1]] = []
            entry = opened[1] if line.startswith("ENTRY") else entry
        elif instruction := _INSTRUCTION.match(line):
            shape, opcode = _shape_and_opcode(instruction[2])
            current.append(_Instruction(opcode, shape, line))
    return found, entry


def _shape_and_opcode(text: str) -> tuple[str, str]:
    """`(f32[2], f32[3]) tuple(…)` in two."""
    end, depth = 0, 0
    for end, character in enumerate(text):  # noqa: B007
        depth += (character == "(") - (character == ")")
        if character == " " and depth == 0:
            break
    return text[:end], text[end + 1 :].split("(", 1)[0]


def _total(
    computations: Mapping[str, Sequence[_Instruction]], name: str, unknown_turns: int
) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in computations[name]:
        if one.opcode == "while":
            trips = _TRIPS.search(one.line)
            turns = int(trips[1]) if trips else unknown_turns
            # The host counts the turns itself where it knows their number.
            for part in ("body",) if trips else ("body", "condition"):
                inner = _total(computations, str(one.named(part)), unknown_turns)
                total.update({key: turns * value for key, value in inner.items()})
        elif one.opcode == "conditional":
            branches = re.findall(
                r"%([\w.\-]+)", one.line.partition("branch_computations={")[2].partition("}")[0]
            )
            branches += [
                b for a in ("true_computation", "false_computation") if (b := one.named(a))
            ]
            inner = [_total(computations, branch, unknown_turns) for branch in branches]
            total.update(max(inner, key=lambda counts: counts["kernels"], default=Counter()))
        elif one.opcode in ("call", "async-start"):
            inner_name = one.named("to_apply") or one.named("calls")
            total.update(_total(computations, str(inner_name), unknown_turns))
        elif one.opcode not in _FREE and not one.opcode.endswith("-done"):
            total.update(_launched(one))
    return total


def _launched(one: _Instruction) -> dict[str, int]:
    counts = {"kernels": 1, "attention": int(SCOPE in one.line)}
    kind = one.opcode.removesuffix("-start")
    if kind in _COLLECTIVES:
        sizes = [_shape_bytes(found) for found in _SHAPE.finditer(one.shape)]
        # What starts a collective has its arguments in its shape as well as its results.
        halves = (
            sizes[len(sizes) // 2 :] if one.opcode.endswith("-start") and len(sizes) > 1 else sizes
        )
        counts |= {kind: 1, f"{kind} bytes": sum(halves)}
    return counts


def _shape_bytes(found: re.Match[str]) -> int:
    kind, dims = found.groups()
    bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind))
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
