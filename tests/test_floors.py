"""The floors of the design: who may import whom, and what start-up may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "units": 0,
    "spec": 1,
    "zoo": 1,
    "workload": 2,
    "schedule": 2,
    "cost": 3,
    "engine": 4,
    "bounds": 5,
    "report": 6,
    "simulation": 7,
    "planner": 8,
    "calibration": 8,
    "validation": 8,
    "cli": 9,
    "__main__": 10,
}
"""Floor of each module or folder below ``mpsim``; a module imports from lower floors, or its own
folder."""

MODULES = {
    ".".join(("mpsim", *path.relative_to(ROOT / "mpsim").with_suffix("").parts)): path
    for path in sorted((ROOT / "mpsim").rglob("*.py"))
}


def place(module):
    """The part of a module's name that has a floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def targets(node):
    """Modules that an import statement loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    whole = [f"{node.module}.{alias.name}" for alias in node.names]
    known = set(MODULES) | {name.removesuffix(".__init__") for name in MODULES}
    return [name if name in known else node.module for name in whole]


def first_party(tree):
    """(target, line, inside a function) of each import of mpsim's own modules."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "level", 0) == 0:
            for target in targets(node):
                if target.split(".")[0] == "mpsim":
                    yield target, node.lineno, id(node) in inside


def for_types_only(module, line):
    """Whether a line of a module stands under ``if TYPE_CHECKING``."""
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test) == "TYPE_CHECKING"
        and node.lineno <= line <= node.end_lineno
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
    )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_floors_below(module):
    mine = place(module)
    wrong = []
    for target, line, inside in first_party(ast.parse(MODULES[module].read_text())):
        theirs = place(target)
        if theirs == "hardware":
            # the one exception: a command loads hardware when asked, so that torch stays optional
            if not (mine == "cli" and (inside or for_types_only(module, line))):
                wrong.append(f"line {line}: imports {target}; only a command may, when asked")
        elif inside:
            wrong.append(f"line {line}: imports {target} inside a function")
        elif theirs not in FLOORS:
            wrong.append(f"line {line}: {target} has no floor")
        elif FLOORS[theirs] >= FLOORS[mine] and theirs != mine:
            wrong.append(f"line {line}: {mine} ({FLOORS[mine]}) imports {target}")
    assert not wrong


def test_there_is_no_import_cycle():
    graph = {}
    for module, path in MODULES.items():
        name = module.removesuffix(".__init__")
        found = {target for target, _, _ in first_party(ast.parse(path.read_text()))}
        graph[name] = {target for target in found if target != name}
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail, name])
        if name in done or name not in graph:
            return
        trail.append(name)
        for target in sorted(graph[name]):
            visit(target)
        trail.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def test_only_hardware_imports_torch():
    for module, path in MODULES.items():
        names = [
            target
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for target in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
        ]
        assert not [name for name in names if name.split(".")[0] == "torch"], module


def test_hardware_never_simulates():
    allowed = {"errors", "units", "spec", "workload", "schedule", "hardware"}
    for path in sorted((ROOT / "hardware").rglob("*.py")):
        for target, line, _ in first_party(ast.parse(path.read_text())):
            assert place(target) in allowed, f"{path.name} line {line}: imports {target}"


HEAVY = ("torch", "scipy.optimize", "scipy.sparse", "numba", "matplotlib", "distributed")
"""Modules that take long to load; scipy's own top is light, and pint looks whether it is there."""


@pytest.mark.parametrize(
    "statement",
    ["import mpsim", "import mpsim.cli", "import mpsim.cli.scenario", "import mpsim.cli.zoo"],
)
def test_start_up_loads_nothing_heavy(statement):
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"
