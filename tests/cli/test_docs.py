"""What is generated is current, and what the documentation names exists."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlx_autoperfect.cli.main import COMMANDS
from mlx_autoperfect.settings import TABLE

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, PROJECT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load("benchmarks/render_tables.py")


def test_the_page_of_settings_is_current() -> None:
    page = (PROJECT / "docs" / "settings.md").read_text()
    assert page == load("docs/render_settings.py").render()
    assert all(f"`{variable.name}`" in page for variable in TABLE)


def test_the_results_are_current() -> None:
    page = tables.README.read_text()
    assert tables.filled(page, tables.results_text(sorted(tables.RESULTS.glob("*.json")))) == page


TABLE_OF_ONE: dict[str, Any] = {"title": "Speed", "columns": ["", "stock", "ours"], "rows": [["decode", 0.3, 92.14]]}


def record(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_tables_from_records(tmp_path: Path) -> None:
    first = record(tmp_path, "a.json", {"tables": [TABLE_OF_ONE]})
    second = record(tmp_path, "b.json", {"tables": [{**TABLE_OF_ONE, "title": "More", "note": "On a machine."}]})
    other = record(tmp_path, "c.json", {"something": "else"})
    text = tables.results_text([first, second, other])
    assert "| decode | 0.3 | 92.1 |" in text
    assert text.index("Speed") < text.index("More") < text.index("On a machine.")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.31234, "0.312"), (1234.5, "1,234"), (7, "7"), (12345, "12,345"), ("a|b", "a\\|b"), (True, "True")],
)
def test_cells(value: Any, text: str) -> None:
    assert tables.cell_text(value) == text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([], "list"),
        ({"tables": [{"title": "x", "columns": []}]}, "rows"),
        ({"tables": [{**TABLE_OF_ONE, "rows": [["decode"]]}]}, "1 cells for 3 columns"),
    ],
)
def test_a_bad_record_is_named(content: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(tables.RecordError, match=f"bad.json: .*{word}"):
        tables.results_text([record(tmp_path, "bad.json", content)])


def test_a_page_without_markers() -> None:
    with pytest.raises(tables.RecordError, match="marker"):
        tables.filled("nothing here", "results")
    with pytest.raises(tables.RecordError, match="end of results"):
        tables.filled(f"{tables.BEGIN} no end", "results")


def test_filling_twice_changes_nothing() -> None:
    once = tables.filled(f"a\n{tables.BEGIN}\nold\n{tables.END}\nb\n", "new\n")
    assert once == f"a\n{tables.BEGIN}\nnew\n{tables.END}\nb\n"
    assert tables.filled(once, "new\n") == once


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_in_the_documentation_parses(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(page: Path) -> None:
    roots = (PROJECT, PROJECT / "mlx_autoperfect", PROJECT / "plugins" / "mlx_autoperfect_cpu", page.parent)
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|h|toml))`", page.read_text()):
        assert any((root / name).exists() for root in roots), name


def test_every_command_is_documented() -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    assert all(f"`{name}" in page for name in COMMANDS)


def test_public_names_in_the_readme_exist() -> None:
    import mlx_autoperfect

    readme = (PROJECT / "README.md").read_text()
    names = re.search(r"from mlx_autoperfect import ([\w, ]+)", readme)
    assert names is not None
    assert set(names[1].split(", ")) <= set(mlx_autoperfect.__all__)


@pytest.mark.parametrize("target", ["demo", "test", "lint", "format", "docs", "clean", "help"])
def test_targets_of_make(target: str, tmp_path: Path) -> None:
    words = ["make", "--dry-run", "--no-print-directory", target, f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_check_script_runs_the_readme_s_command() -> None:
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r"^make test\b", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert re.search(r"^make .*\btest\b", script.read_text(), re.MULTILINE)
