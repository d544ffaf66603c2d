"""The house keeps its order: imports point down, there are no cycles, heavy libraries stay out."""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "emodistill"

LAYERS = (
    *("errors", "emotions", "seeding", "records", "jsonl", "logs", "runs", "progress"),
    *("configs", "cli"),
    *("domains", "prompts", "llm", "negotiation", "simulator"),
    *("offline", "batches", "model", "train", "selectors", "agents"),
    *("evaluation", "reports", "stages", "studies", "pipeline", "bench"),
)
"""Earliest first (docs/ARCHITECTURE.md); a module may import its own layer and earlier ones."""

JAX_FREE = LAYERS[: LAYERS.index("offline") + 1]
HEAVY = ("jax", "torch", "transformers", "matplotlib", "datasets", "orbax", "pandas")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package goes by its `__init__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that `path` imports, in functions too, but not for typing only."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return {target for target in found if target in known and target != name}


def layer(name: str) -> str | None:
    """The layer of a module; None for the package itself."""
    return name.split(".")[1] if "." in name else None


KNOWN = modules()
GRAPH = {name: imports(name, path, KNOWN) for name, path in KNOWN.items()}


def upward(graph: dict[str, set[str]]) -> list[str]:
    rank = {None: -1} | {name: i for i, name in enumerate(LAYERS)}
    last = len(LAYERS)
    return [
        f"{source} imports {target}"
        for source, targets in sorted(graph.items())
        for target in sorted(targets)
        if rank.get(layer(target), last) > rank.get(layer(source), last)
    ]


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """One import cycle as a path that returns to its start, None where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(graph[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


def test_every_module_has_a_layer():
    unplaced = sorted({layer(name) for name in KNOWN} - {None, *LAYERS})
    assert not unplaced, (
        f"say in LAYERS, and in docs/ARCHITECTURE.md, where these stand: {unplaced}"
    )


def test_imports_point_down():
    assert not upward(GRAPH)


def test_there_is_no_cycle():
    found = cycle(GRAPH)
    assert found is None, " -> ".join(found or [])


def test_the_checks_see_an_upward_arrow_and_a_cycle(tmp_path):
    """Relative, aliased and in-function imports count; imports for typing do not."""
    source = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from emodistill.pipeline import main\n"
        "def f():\n    from ..reports import results\n    import emodistill.seeding as s\n"
    )
    path = tmp_path / "sweep.py"
    path.write_text(source)
    known = dict.fromkeys(
        ["emodistill.offline.sweep", "emodistill.reports.results", "emodistill.seeding"], path
    ) | {"emodistill.pipeline": path}
    found = imports("emodistill.offline.sweep", path, known)
    assert found == {"emodistill.reports.results", "emodistill.seeding"}
    assert upward({"emodistill.offline.sweep": found}) == [
        "emodistill.offline.sweep imports emodistill.reports.results"
    ]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_simulator_has_its_own_reader_of_offers():
    """A mistake that both sides share would be invisible; only what a speaker is, they share."""
    shared = {
        (source, target)
        for source, targets in GRAPH.items()
        for target in targets
        if layer(source) == "simulator"
        and layer(target) == "negotiation"
        and target != "emodistill.negotiation.speakers"
    }
    assert not shared


def test_no_drawer_for_odds_and_ends():
    stem = re.compile(r"^(utils?|helpers?|common|misc)$|_(v\d+|new|old)$")
    names = [path for path in PACKAGE.rglob("*") if stem.search(path.stem)]
    assert not names, f"a file is named for what it is about: {names}"


def test_layer_order_is_documented():
    text = (PACKAGE.parent / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    order = next(line for line in text.splitlines() if line.startswith("`errors`"))
    assert re.findall(r"`(\w+)`", order) == list(LAYERS)


def test_every_metric_is_defined():
    source = "".join(path.read_text() for path in sorted((PACKAGE / "train").glob("*.py")))
    logged = set(re.findall(r'"([a-z]+/[a-z0-9_]+)":', source))
    text = (PACKAGE.parent / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert "sft/loss" in logged
    assert not logged - set(re.findall(r"`([a-z]+/[a-z0-9_]+)`", text))


def test_light_layers_stay_light():
    """What stands before `batches`, the stages and every package's door load no heavy library."""
    light = [name for name in KNOWN if layer(name) in (None, *JAX_FREE, "stages")]
    doors = [name for name, path in KNOWN.items() if path.name == "__init__.py"]
    names = sorted({*light, *doors} - {n for n in KNOWN if n.endswith("__main__")})
    program = (
        f"import importlib, sys\nfor name in {names!r}:\n"
        f"    importlib.import_module(name)\n"
        f"    found = sorted(set(sys.modules) & set({HEAVY!r}))\n"
        f"    assert not found, f'{{name}} imports {{found}}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
