"""``mlx-autoperfect run``: what it starts, how that ends, and what it says when there is nothing to start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent / "fakes" / "launch.py"


@pytest.fixture(scope="module")
def launchable(disposable_for_module):
    """An environment whose start-up hook is gone and whose mlx-lm has a distribution with console scripts."""
    environment = disposable_for_module
    for name in ("mlx_autoperfect.pth", "mlx_autoperfect.start"):
        (environment.site / name).unlink()
    metadata = environment.site / "mlx_lm-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-lm\nVersion: 0\n")
    scripts = "".join(f"mlx_lm.{name} = mlx_lm.{name}:main\n" for name in ("generate", "lora", "evaluate"))
    (metadata / "entry_points.txt").write_text(f"[console_scripts]\nmlx_lm = mlx_lm.cli:main\n{scripts}")
    return environment


def launch(environment, *words, **kwargs):
    return environment.run(LAUNCH, *words, fakes=("mlx_lm",), **kwargs)


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["mlx_lm.generate"], "mlx_lm.generate"),
        (["mlx_lm", "generate"], "mlx_lm"),
        (["-m", "mlx_lm", "generate"], "__main__.py"),
        (["-m", "mlx_lm.generate"], "generate.py"),
    ],
)
def test_every_spelling_of_a_command(launchable, words, program) -> None:
    result = launch(launchable, *words, "--draft-model", "draft")
    seen = json.loads(result.stdout)
    assert (seen["patched"], seen["draft_patched"], Path(seen["program"]).name) == (True, True, program)
    help_text = launch(launchable, *words, "--help").stdout
    assert help_text.count("[--autoperfect | --no-autoperfect]") == 1


@pytest.mark.parametrize(("more", "env"), [(["--no-autoperfect"], {}), ([], {"AUTOPERFECT": "0"})])
def test_off_beats_the_launcher(launchable, more, env) -> None:
    result = launch(launchable, "mlx_lm.generate", *more, env=env)
    assert json.loads(result.stdout)["patched"] is False


def test_the_launcher_leaves_commands_that_save_alone(launchable) -> None:
    result = launch(launchable, "mlx_lm.lora")
    assert json.loads(result.stdout)["patched"] is False
    assert "CORE" not in result.stderr


def test_a_script_sees_what_python_would_give_it(launchable, tmp_path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside\nfrom mlx_lm import load\n"
        "print(__name__, sys.argv[1:], beside.NAME, load('m')[0].patched, sys.modules['__main__'].load is load)\n"
    )
    result = launch(launchable, script, "-m", "--autoperfect")
    assert result.stdout == "__main__ ['-m', '--autoperfect'] beside True True\n", result.stderr


def test_a_module_is_found_in_the_current_folder(launchable, tmp_path) -> None:
    (tmp_path / "job.py").write_text("from mlx_lm import load\nprint(load('m')[0].patched)\n")
    assert launch(launchable, "job", cwd=tmp_path).stdout == "True\n"


@pytest.mark.parametrize(
    "words",
    [
        ["no_such_module"],
        ["-m", "no_such_module"],
        ["mlx_lm.no_such_command"],
        ["-m", "no_such.package.module"],
        ["missing.py"],
        ["/no/such/folder/script"],
        ["-m", "..odd"],
        ["-m", "json.__main__.x"],
    ],
)
def test_nothing_to_run_is_one_line_and_exit_2(launchable, words) -> None:
    result = launch(launchable, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("mlx-autoperfect run: there is no") or "does not exist" in result.stderr
    assert result.stderr.count("\n") == 1


def test_usage(launchable) -> None:
    assert launch(launchable).returncode == 2
    assert launch(launchable, "--help").stdout.startswith("usage: mlx-autoperfect run")


@pytest.mark.parametrize(
    ("body", "code", "out", "err"),
    [
        ("print('done')", 0, "done\n", ""),
        ("raise SystemExit(5)", 5, "", ""),
        ("raise SystemExit('a reason')", 1, "", "a reason\n"),
        ("import sys; sys.exit()", 0, "", ""),
        ("import no_such_thing", 1, "", "ModuleNotFoundError: No module named 'no_such_thing'\n"),
        ("raise KeyboardInterrupt", 130, "", "KeyboardInterrupt\n"),
    ],
)
def test_the_programs_end_is_the_launchers_end(launchable, tmp_path, body, code, out, err) -> None:
    script = tmp_path / "script.py"
    script.write_text(body + "\n")
    result = launch(launchable, script)
    assert (result.returncode, result.stdout) == (code, out)
    assert result.stderr.endswith(err)
    assert bool(result.stderr) is bool(err)
    assert "mlx_autoperfect" not in result.stderr


@pytest.mark.parametrize("words", [["mlx_lm.generate"], ["-m", "mlx_lm", "generate"]])
def test_mlx_lms_own_error_shows_no_frame_of_ours(launchable, words) -> None:
    result = launch(launchable, *words, "--model", "missing")
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("FileNotFoundError: no model at missing")
    assert "mlx_autoperfect" not in result.stderr
    assert "runpy" not in result.stderr


def test_a_command_whose_import_fails_is_not_called_unknown(launchable) -> None:
    result = launch(launchable, "mlx_lm.evaluate")
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("No module named 'a_package_that_is_not_installed'")
    assert "mlx_autoperfect" not in result.stderr


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("odd = no_such_plugin\nlm = mlx_autoperfect_lm.plugin\n", ""),
        (
            "lm = no_such_plugin\n",
            "no host plugin is usable (lm: ModuleNotFoundError: No module named 'no_such_plugin')",
        ),
        ("", "no host plugin is usable; "),
    ],
)
def test_plugins_that_cannot_be_loaded(launchable, group, line) -> None:
    """One that is no host costs nothing here; without any host the program runs as it is, after one line."""
    entry_points = next(launchable.site.glob("mlx_autoperfect-*.dist-info")) / "entry_points.txt"
    text = entry_points.read_text()
    entry_points.write_text(f"[mlx_autoperfect]\n{group}")
    result = launch(launchable, "mlx_lm.generate")
    entry_points.write_text(text)
    assert result.returncode == 0
    assert json.loads(result.stdout)["patched"] is not bool(line)
    assert (line in result.stderr) and result.stderr.count("autoperfect: ") == bool(line)
