"""What can go wrong: the answer is stock mlx-lm's, with its exit code, and at most one line of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

FLAG = "--autoperfect"
FAKES = Path(__file__).parent / "fakes"
MLX_LM = FAKES / "mlx_lm"


def generate(environment, *arguments, core: str = "core_recording", **kwargs):
    script = environment.root / "bin" / "mlx_lm.generate"
    return environment.run(script, *arguments, fakes=(core, "mlx_lm"), **kwargs)


@pytest.mark.parametrize(
    ("core", "line"),
    [
        ("core_raising", "autoperfect: RuntimeError: first line second line; running stock mlx-lm"),
        ("core_exiting", "autoperfect: SystemExit: 7; running stock mlx-lm"),
        (
            "core_broken",
            "autoperfect: ImportError: libmissing.so: cannot open shared object file; running stock mlx-lm",
        ),
    ],
)
def test_a_failing_core_costs_one_line(installed, core, line) -> None:
    stock, result = generate(installed, core=core), generate(installed, FLAG, core=core)
    assert (stock.returncode, result.returncode) == (0, 0)
    assert [text for text in result.stderr.splitlines() if not text.startswith("CORE")] == [line]
    before, after = json.loads(stock.stdout), json.loads(result.stdout)
    assert (after["answer"], after["patched"]) == (before["answer"], False)


def test_a_core_that_failed_halfway_is_undone(installed) -> None:
    assert "CORE restore" in generate(installed, FLAG, core="core_raising").stderr


def test_a_bad_setting_is_one_line_in_the_cores_words(installed) -> None:
    code = (
        "import mlx_autoperfect\nfrom mlx_autoperfect.settings import Settings\n"
        "mlx_autoperfect.optimize = lambda model, progress=None: Settings.from_env()\n"
        "from mlx_lm import load; print(load('m')[0].patched)"
    )
    result = installed.run("-c", code, fakes=("mlx_lm",), env={"AUTOPERFECT": "maybe"})
    assert (result.returncode, result.stdout) == (0, "False\n")
    assert result.stderr.startswith("autoperfect: AUTOPERFECT takes 1 or 0, not 'maybe'")
    assert result.stderr.endswith("; running stock mlx-lm\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [[], [FLAG]])
@pytest.mark.parametrize("words", [["{bin}/mlx_lm.generate"], ["-m", "mlx_lm", "generate"], ["{bin}/mlx_lm.server"]])
def test_mlx_lms_own_error_is_printed_as_if_we_were_not_there(installed, bare, words, flags) -> None:
    """Also in a thread (the server) the traceback equals stock's, character for character."""
    here = [word.format(bin=installed.root / "bin") for word in words]
    there = [word.format(bin=bare.root / "bin") for word in words]
    result = installed.run(*here, *flags, "--model", "missing", fakes=("core_recording", "mlx_lm"))
    stock = bare.run(*there, "--model", "missing", fakes=("core_recording", "mlx_lm"))
    assert "FileNotFoundError: no model at missing" in stock.stderr
    assert result.stderr.replace(str(installed.root), str(bare.root)) == stock.stderr
    assert (result.returncode, result.stdout) == (stock.returncode, stock.stdout)


@pytest.mark.parametrize(
    ("command", "error"),
    [("evaluate", "No module named 'a_package_that_is_not_installed'"), ("perplexity", "cannot be imported")],
)
def test_a_command_that_cannot_be_imported_fails_as_in_stock(installed, bare, command, error) -> None:
    result = installed.run(installed.root / "bin" / f"mlx_lm.{command}", fakes=("mlx_lm",))
    stock = bare.run(bare.root / "bin" / f"mlx_lm.{command}", fakes=("mlx_lm",))
    assert error in stock.stderr
    assert result.stderr.replace(str(installed.root), str(bare.root)) == stock.stderr
    assert result.returncode == stock.returncode == 1


def test_ctrl_c_while_optimizing_stops_like_ctrl_c(installed, tmp_path) -> None:
    core = tmp_path / "mlx_autoperfect.py"
    core.write_text("def optimize(model, progress=None):\n    raise KeyboardInterrupt\n")
    script = installed.root / "bin" / "mlx_lm.generate"
    env = {"PYTHONPATH": f"{tmp_path}:{MLX_LM}"}
    result = installed.run(script, FLAG, env=env)
    assert result.returncode in (-2, 130)
    assert result.stderr.rstrip().endswith("KeyboardInterrupt")
    assert "mlx_autoperfect" not in result.stderr


DAMAGE = {
    "package deleted": lambda site: shutil.rmtree(site / "mlx_autoperfect_lm"),
    "package emptied": lambda site: [file.unlink() for file in (site / "mlx_autoperfect_lm").glob("*.py")],
    "start-up module broken": lambda site: (site / "mlx_autoperfect_lm/_startup.py").write_text("def ("),
    "finder missing": lambda site: (site / "mlx_autoperfect_lm/_imports.py").unlink(),
    "wrong start-up module": lambda site: (site / "mlx_autoperfect_lm/_startup.py").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_install_is_silent_and_mlx_lm_works(disposable, damage) -> None:
    DAMAGE[damage](disposable.site)
    unrelated = disposable.run("-c", "print('fine')", env={"AUTOPERFECT": "1"})
    assert (unrelated.stdout, unrelated.stderr) == ("fine\n", "")
    result = disposable.run("-m", "mlx_lm", "generate", fakes=("mlx_lm",))
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["patched"] is False


def test_the_start_file_function_is_silent_when_the_rest_is_gone(disposable) -> None:
    """Python 3.15 calls it in every program, without the ``.pth`` line's own guard."""
    (disposable.site / "mlx_autoperfect_lm" / "_imports.py").unlink()
    result = disposable.run("-c", "import mlx_autoperfect_lm._startup as s; s.init()", env={"AUTOPERFECT": "1"})
    assert (result.returncode, result.stderr) == (0, "")


def test_a_missing_part_behind_the_flag_is_one_line(disposable) -> None:
    (disposable.site / "mlx_autoperfect_lm" / "_loading.py").write_text("raise ImportError('half removed')\n")
    result = disposable.run("-m", "mlx_lm", "generate", fakes=("mlx_lm",))
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert {"autoperfect: cannot hook into mlx_lm.generate (ImportError: half removed); running stock mlx-lm"} <= set(
        result.stderr.splitlines()
    )


def test_without_mlx_lm_the_variable_changes_nothing(disposable) -> None:
    code = "try: import mlx_lm\nexcept ModuleNotFoundError as error: print(error)"
    result = disposable.run("-c", code, env={"AUTOPERFECT": "1"})
    assert (result.stdout, result.stderr) == ("No module named 'mlx_lm'\n", "")


@pytest.mark.parametrize("options", [["-I"], ["-E"], ["-s"], ["-B"]])
def test_interpreter_options(disposable, options) -> None:
    """-I and -E ignore PYTHONPATH, so the packages have to lie in site-packages here."""
    shutil.copytree(FAKES / "mlx_lm" / "mlx_lm", disposable.site / "mlx_lm")
    shutil.rmtree(disposable.site / "mlx_autoperfect")
    shutil.copytree(FAKES / "core_recording" / "mlx_autoperfect", disposable.site / "mlx_autoperfect")
    result = disposable.run(*options, "-m", "mlx_lm", "generate", FLAG)
    assert json.loads(result.stdout)["patched"] is True, result.stderr
