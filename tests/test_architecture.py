"""The house keeps its order: imports point down, there are no cycles, heavy libraries stay out."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "emodistill"

LAYERS = (
    *("errors", "emotions", "untrusted", "seeding", "records", "jsonl", "logs", "progress"),
    *("files", "tensor_files", "operating_system", "configs", "settings", "runs"),
    *("domains", "prompts", "llm", "negotiation", "simulator"),
    *("offline", "batches", "model", "train", "selectors"),
    *("evaluation", "serving", "reports", "stages", "studies", "cli"),
)
"""Earliest first (docs/ARCHITECTURE.md); a module may import its own layer and earlier ones."""

LIGHT = ("errors", "emotions", "logs", "operating_system", "configs", "settings", "files")
LIGHT += ("studies", "cli")
"""What the command line loads before it has answered `--help`."""
HEAVY = ("jax", "torch", "transformers", "matplotlib", "datasets", "orbax", "pandas", "aiohttp")


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


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """What each module of the package imports of it."""
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


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
    unplaced = sorted({layer(name) for name in modules()} - {None, *LAYERS})
    assert not unplaced, (
        f"say in LAYERS, and in docs/ARCHITECTURE.md, where these stand: {unplaced}"
    )


def test_imports_point_down():
    assert not upward(import_graph())


def test_there_is_no_cycle():
    found = cycle(import_graph())
    assert found is None, " -> ".join(found or [])


def test_the_checks_see_an_upward_arrow_and_a_cycle(tmp_path):
    """Relative, aliased and in-function imports count; imports for typing do not."""
    source = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from emodistill.pipeline import main\n"
        "def f():\n    from ..reports import tables\n    import emodistill.seeding as s\n"
    )
    path = tmp_path / "sweep.py"
    path.write_text(source)
    known = dict.fromkeys(
        ["emodistill.offline.sweep", "emodistill.reports.tables", "emodistill.seeding"], path
    ) | {"emodistill.pipeline": path}
    found = imports("emodistill.offline.sweep", path, known)
    assert found == {"emodistill.reports.tables", "emodistill.seeding"}
    assert upward({"emodistill.offline.sweep": found}) == [
        "emodistill.offline.sweep imports emodistill.reports.tables"
    ]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_simulator_has_its_own_reader_of_offers():
    """A mistake that both sides share would be invisible; only what a writer is, they share."""
    shared = {
        (source, target)
        for source, targets in import_graph().items()
        for target in targets
        if layer(source) == "simulator"
        and layer(target) == "negotiation"
        and target != "emodistill.negotiation.writers"
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
    logged = set(re.findall(r'"([a-z]+/[a-z0-9_]+)"', source))
    text = (PACKAGE.parent / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert "sft/loss" in logged
    assert not logged - set(re.findall(r"`([a-z]+/[a-z0-9_]+)`", text))


def test_no_test_imports_another():
    """What several use is in a module of its own."""
    tests = PACKAGE.parent / "tests"
    sources = {path.name: path.read_text(encoding="utf-8") for path in tests.glob("*.py")}
    assert len(sources) > 100
    assert not [
        name for name, text in sources.items() if re.search(r"^(from|import) test_", text, re.M)
    ]


def test_the_command_line_loads_nothing_heavy():
    """Nor does a package's door, which exports its names on first use."""
    packages = ("model", "train", "batches", "selectors", "evaluation", "reports", "stages")
    doors = [f"emodistill.{name}" for name in packages]
    names = ["emodistill", *(f"emodistill.{name}" for name in (*LIGHT, "studies")), *doors]
    program = (
        f"import importlib, sys\nfor name in {names!r}:\n"
        f"    importlib.import_module(name)\n"
        f"    heavy = sorted(set(sys.modules) & set({HEAVY!r}))\n"
        f"    assert not heavy, f'{{name}} imports {{heavy}}'\n"
        # Nor do those that build on these need an accelerator's library to be looked at.
        "import emodistill.domains, emodistill.model.config, emodistill.model.tokenization\n"
        "emodistill.domains.load_scenarios('crad')\n"
        # A sweep needs neither these nor what figures and statistics are made with.
        "import emodistill.stages.sweep\n"
        "heavy = {'jax', 'flax', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr


def test_names_are_used_once():
    """No class name twice, no file that hides what is inside, few parameters, few late imports."""
    classes: dict[str, list[str]] = {}
    wide, late = [], []
    folders = ("emodistill", "scripts", "benchmarks", "pretraining")
    for path in sorted(p for f in folders for p in (PACKAGE.parent / f).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            where = f"{path}:{node.lineno}"
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(where)
            else:
                args = node.args
                num_args = len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs)
                if num_args > 10 and not node.name.endswith("_loss"):
                    wide.append(f"{where} {node.name} has {num_args} parameters")
                late += [
                    (where, lines[inner.lineno - 1])
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.Import | ast.ImportFrom)
                ]
    assert not {name: found for name, found in classes.items() if len(found) > 1}
    assert not wide
    assert len(late) <= 40, f"{len(late)} imports inside functions"
    assert not [where for where, line in late if "#" not in line], "a late import says why"


def in_the_encoding_of_the_locale(source: str) -> list[int]:
    """The lines of calls that read or write text without naming its encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: word.value for word in node.keywords}
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        is_method = isinstance(node.func, ast.Attribute)
        of_os = is_method and getattr(node.func.value, "id", "") == "os"
        if name == "open" and not of_os:
            mode = keywords.get("mode", next(iter(node.args[0 if is_method else 1 :]), None))
            is_text = "b" not in getattr(mode, "value", "")
        elif name in ("read_text", "write_text"):
            is_text = is_method
        else:
            is_text = name in ("fdopen", "FileHandler", "TextIOWrapper", "NamedTemporaryFile")
            is_text |= "text" in keywords and name in ("run", "Popen", "check_output")
        if is_text and "encoding" not in keywords:
            found.append(node.lineno)
    return found


def test_every_text_file_names_its_encoding():
    folders = ("emodistill", "scripts", "benchmarks", "pretraining")
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line}"
        for path in sorted(p for f in folders for p in (PACKAGE.parent / f).rglob("*.py"))
        for line in in_the_encoding_of_the_locale(path.read_text(encoding="utf-8"))
    ]
    assert not found, "a locale may have another encoding: say encoding='utf-8'"


def test_the_check_of_encodings_sees_every_way_to_open_a_text():
    wrong = ("open(p)", "p.open()", "p.open('a', buffering=1)", "open(p, 'w')", "p.read_text()")
    wrong += ("p.write_text(t)", "run(c, text=True)", "os.fdopen(3)", "p.read_text('utf-8')")
    right = ("open(p, 'rb')", "p.open('rb')", "os.open(p, 0)", "p.read_text(encoding='utf-8')")
    right += ("read_text(p)", "p.read_bytes()", "run(c, text=True, encoding='utf-8')")
    lines = in_the_encoding_of_the_locale("\n".join((*wrong, *right)))
    assert lines == list(range(1, len(wrong) + 1))
