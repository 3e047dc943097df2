"""Who pays for the start-up hook: the line in ``mlx_autoperfect.pth`` and ``_startup.gate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mlx_autoperfect_lm import _startup

PTH = Path(__file__).parents[2] / "mlx_autoperfect.pth"
START = Path(__file__).parents[2] / "mlx_autoperfect.start"

# AUTOPERFECT, sys.orig_argv, sys.argv as site sees it, whether the gate opens
CASES = [
    (None, ["python", "-c", "pass"], ["-c"], False),
    (None, ["python"], [""], False),
    (None, ["python", "-m", "http.server"], ["-m"], False),
    (None, ["python", "train.py", "mlx_lm.generate"], ["train.py", "mlx_lm.generate"], False),
    (None, ["python", "/home/a/mlx_lm_fork/train.py"], ["/home/a/mlx_lm_fork/train.py"], False),
    (None, ["python", "/usr/bin/pip", "install", "mlx_lm"], ["/usr/bin/pip", "install", "mlx_lm"], False),
    (None, ["python", "/env/bin/mlx_lm.generate", "--model", "m"], ["/env/bin/mlx_lm.generate", "--model", "m"], True),
    (None, ["python", "/env/bin/mlx_lm", "generate"], ["/env/bin/mlx_lm", "generate"], True),
    (None, ["python", "-m", "mlx_lm", "generate", "--x"], ["-m", "generate", "--x"], True),
    (None, ["python", "-m", "mlx_lm.server"], ["-m"], True),
    (None, ["python", "-mmlx_lm.server", "--x"], ["-m", "--x"], True),
    (None, ["python", "-I", "-X", "utf8", "-W", "ignore", "-m", "mlx_lm", "chat"], ["-m", "chat"], True),
    (None, [], [], False),
    ("1", ["python", "-c", "pass"], ["-c"], True),
    ("maybe", ["python", "-c", "pass"], ["-c"], True),
    *((off, ["python", "-c", "pass"], ["-c"], False) for off in ("", " ", "0", "OFF", "false", "no")),
    ("0", ["python", "/env/bin/mlx_lm.generate"], ["/env/bin/mlx_lm.generate"], True),
]


@pytest.mark.parametrize(("value", "orig", "argv", "opens"), CASES)
def test_both_spellings_of_the_gate_agree(
    value: str | None, orig: list[str], argv: list[str], opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOPERFECT", raising=False)
    if value is not None:
        monkeypatch.setenv("AUTOPERFECT", value)
    monkeypatch.setattr(sys, "orig_argv", orig)
    monkeypatch.setattr(sys, "argv", argv)
    bodies: list[str] = []
    exec(PTH.read_text().replace("exec(", "record("), {"record": bodies.append})
    assert bool(bodies) is opens
    assert _startup.gate() is opens


def test_gate_survives_an_embedded_interpreter_without_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOPERFECT", raising=False)
    monkeypatch.setattr(sys, "orig_argv", [])
    monkeypatch.delattr(sys, "argv")
    exec(PTH.read_text(), {})
    assert _startup.gate() is False


def test_pth_is_one_line_that_site_executes() -> None:
    text = PTH.read_text()
    assert text.startswith("import ")
    assert text.count("\n") == 1
    assert len(text) < 500


def test_start_file_names_an_existing_function() -> None:
    module, function = START.read_text().strip().split(":")
    assert (module, getattr(_startup, function)) == (_startup.__name__, _startup.init)


OURS = "import sys, json; print(json.dumps(sorted(m for m in sys.modules if m.startswith('mlx_autoperfect'))))"


@pytest.mark.parametrize("options", [[], ["-I"], ["-E"], ["-S"], ["-s", "-B"]])
def test_an_unrelated_program_imports_nothing_of_ours(installed, options) -> None:
    result = installed.run(*options, "-c", OURS)
    assert (json.loads(result.stdout), result.stderr) == ([], "")


def test_the_variable_opens_the_gate_and_loads_no_core(installed) -> None:
    result = installed.run("-c", OURS, env={"AUTOPERFECT": "1"})
    names = json.loads(result.stdout)
    assert "mlx_autoperfect_lm._startup" in names
    assert not [name for name in names if name.split(".")[0] != "mlx_autoperfect_lm"]
    assert not {"mlx_autoperfect_lm._flag", "mlx_autoperfect_lm._loading"} & set(names)


@pytest.mark.parametrize("value", ["0", "off", ""])
def test_the_variable_says_off_and_nothing_is_imported(installed, value) -> None:
    assert json.loads(installed.run("-c", OURS, env={"AUTOPERFECT": value}).stdout) == []


def test_the_package_itself_imports_nothing(installed) -> None:
    code = "import sys; a = set(sys.modules); import mlx_autoperfect_lm; print(set(sys.modules) - a)"
    assert installed.run("-c", code).stdout.strip() == "{'mlx_autoperfect_lm'}"


def test_a_folder_named_like_mlx_lm_is_unrelated(installed, tmp_path) -> None:
    folder = tmp_path / "mlx_lm_project"
    folder.mkdir()
    (folder / "tool.py").write_text(OURS)
    assert json.loads(installed.run(folder / "tool.py", "mlx_lm.generate").stdout) == []
