"""Imports point one way: each room may import itself and the rooms before it, and no plugin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
CORE = "mlx_autoperfect"
PLUGINS = sorted(path.name for path in (PROJECT / "plugins").iterdir() if (path / "__init__.py").is_file())

# Rooms of one line do not import each other.
LEVELS = (
    ("errors",),
    ("dtypes", "settings"),
    ("device",),
    ("graph",),
    ("capture", "passes"),
    ("fusion",),
    ("kernel",),
    ("codegen", "generate"),
    ("hookspecs",),
    ("verify",),
    ("measure",),
    ("store",),
    ("tune",),
    ("packs",),
    ("fetch",),
    ("runtime",),
    ("pipeline",),
    ("report",),
    ("api",),
    ("cli",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# The package itself only names the public functions and imports them when they are asked for.
RE_EXPORT = "__init__"


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that is imported anywhere in a file, lazily or for types as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str | None:
    """``mlx_autoperfect.graph.ops`` -> ``graph``; ``None`` outside the core and for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == CORE and len(parts) > 1 and parts[1] in LEVEL_OF else None


def core_files() -> list[Path]:
    return sorted((PROJECT / CORE).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def violations(path: Path, text: str) -> list[str]:
    module = module_of(path)
    own = room_of(module)
    found = []
    for line, name in imported(ast.parse(text), module):
        if name.split(".")[0] in PLUGINS and module != CORE:
            found.append(f"{module}:{line} imports the plugin {name}")
        room = room_of(name)
        if own is None or room is None or room == own:
            continue
        if LEVEL_OF[room] >= LEVEL_OF[own]:
            found.append(f"{module}:{line} imports {name}, which is not before it")
    return found


@pytest.mark.parametrize("path", core_files(), ids=module_of)
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    assert violations(path, path.read_text()) == []


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {path.relative_to(PROJECT / CORE).parts[0].removesuffix(".py") for path in core_files()}
    assert rooms - {RE_EXPORT} <= LEVEL_OF.keys()


def test_the_order_in_the_guide_is_the_one_that_is_tested() -> None:
    guide = (PROJECT / "CONTRIBUTING.md").read_text()
    order = guide.partition("hold")[2].partition("```")[2].partition("```")[0]
    written = [[room.strip() for room in level.split(",")] for level in order.replace("\n", " ").split("<")]
    exists = {path.relative_to(PROJECT / CORE).parts[0].removesuffix(".py") for path in core_files()}
    assert {room for rooms in written for room in rooms} == exists - {RE_EXPORT}
    for earlier, later in pairwise(written):
        assert max(LEVEL_OF[room] for room in earlier) <= min(LEVEL_OF[room] for room in later)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("graph/ops.py", "from mlx_autoperfect.fusion import region"),
        ("graph/ops.py", "def f():\n    import mlx_autoperfect.pipeline"),
        ("passes/rules.py", "from mlx_autoperfect.capture.trace import trace"),
        ("fusion/cost.py", "from ..kernel import ir"),
        ("verify/judge.py", "from mlx_autoperfect_cpu.backend import CpuBackend"),
        ("cli/doctor.py", "import mlx_autoperfect_cpu.toolchain"),
        ("settings.py", "from mlx_autoperfect import device"),
    ],
)
def test_the_check_itself_sees_violations(file: str, text: str) -> None:
    assert violations(PROJECT / CORE / file, text)


def test_importing_the_package_imports_nothing_else() -> None:
    import subprocess
    import sys

    code = "import sys, mlx_autoperfect; print([m for m in sys.modules if m.startswith(('mlx', 'numpy', 'rich'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['mlx_autoperfect']"
