"""Programs that use mlx-lm as a library: the variable, and activation before or after mlx-lm is imported."""

from __future__ import annotations

import pytest

MLX_LM = ("core_recording", "mlx_lm")
EARLY = "import mlx_autoperfect_lm; mlx_autoperfect_lm.activate()\n"


def run(installed, code: str, value: str | None = None) -> tuple[str, str]:
    result = installed.run("-c", code, fakes=MLX_LM, env={} if value is None else {"AUTOPERFECT": value})
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.mark.parametrize(
    ("value", "patched", "lines"), [("1", "True", 1), (None, "False", 0), ("0", "False", 0), ("off", "False", 0)]
)
def test_the_variable_decides_for_a_library_user(installed, value, patched, lines) -> None:
    out, err = run(installed, "from mlx_lm import load; print(load('m')[0].patched)", value)
    assert (out, err.count("CORE")) == (f"{patched}\n", lines)


@pytest.mark.parametrize("call", ["load('m')", "load('m', return_config=True)", "load_model('m')", "sharded_load('m')"])
def test_every_load_function_patches_once_and_keeps_its_result(installed, call) -> None:
    code = f"import mlx_lm.utils as u; r = u.{call}; print(r[0].patched, type(r).__name__, len(r))"
    size = 3 if "return_config" in call else 2
    out, err = run(installed, code, "1")
    assert (out, err.count("CORE")) == (f"True tuple {size}\n", 1)


@pytest.mark.parametrize("call", ["load('m', None, True)", "load('m', lazy=True)", "load_model('m', True)"])
def test_lazy_by_position_and_by_name(installed, call) -> None:
    out, err = run(installed, f"import mlx_lm.utils as u; print(u.{call}[0].patched)", "1")
    assert (out, err) == ("False\n", "")


def test_activation_before_the_import(installed) -> None:
    assert run(installed, EARLY + "from mlx_lm import load; print(load('m')[0].patched)")[0] == "True\n"


def test_late_activation_rebinds_names_bound_before(installed) -> None:
    code = (
        "import mlx_lm, mlx_lm.generate, sys\nfrom mlx_lm import load as mine\nfrom mlx_lm.utils import load_model\n"
        + EARLY * 2
        + "print(mine('m')[0].patched, load_model('m')[0].patched, mlx_lm.load is mine,"
        " sys.modules['mlx_lm.generate'].load is mine, mine.__wrapped__.__module__, mine.__name__)"
    )
    out, err = run(installed, code)
    assert (out, err.count("CORE")) == ("True True True True mlx_lm.utils load\n", 2)


def test_the_variable_off_beats_activation(installed) -> None:
    code = EARLY + "from mlx_lm import load; print(load('m')[0].patched)"
    assert run(installed, code, "0") == ("False\n", "")


def test_reloading_mlx_lm_keeps_it_attached(installed) -> None:
    code = "import importlib, mlx_lm.utils as u; importlib.reload(u); print(u.load('m')[0].patched)"
    out, err = run(installed, code, "1")
    assert (out, err.count("CORE")) == ("True\n", 1)


def test_wrong_arguments_are_refused_in_mlx_lms_own_words(installed) -> None:
    code = "from mlx_lm import load\ntry: load('m', colour=1)\nexcept TypeError as error: print(error)"
    assert run(installed, code, "1")[0] == run(installed, code)[0]


def test_a_second_command_line_in_one_process_decides_anew(installed) -> None:
    code = (
        "import json, sys, mlx_lm\nmain = sys.modules['mlx_lm.generate'].main\n"
        "for words in (['--autoperfect'], [], ['--no-autoperfect'], ['--autoperfect']):\n"
        "    sys.argv = ['mlx_lm.generate', *words]\n    main()\n"
    )
    script = installed.root / "bin" / "mlx_lm.twice"
    script.write_text(code)
    result = installed.run(script, fakes=MLX_LM)
    script.unlink()
    assert [line.count('"patched": true') for line in result.stdout.splitlines()] == [1, 0, 0, 1], result.stderr


def test_nobody_elses_parser_gets_the_flag(installed) -> None:
    code = "import mlx_lm, argparse; print('autoperfect' in argparse.ArgumentParser().format_help())"
    assert run(installed, code, "1")[0] == "False\n"


def test_threads_are_independent(installed) -> None:
    code = (
        "import threading, mlx_lm.utils as u\nstock = u.load_model.__wrapped__\n"
        "inside, done = threading.Event(), threading.Event()\n"
        "def slow(path, lazy=False):\n    inside.set(); done.wait(20); return stock(path, lazy)\n"
        "u.load_model = slow\nfirst = []\n"
        "thread = threading.Thread(target=lambda: first.append(u.load('a')[0].patched)); thread.start()\n"
        "inside.wait(20); u.load_model = stock\n"
        "second = u.load('b')[0].patched; done.set(); thread.join(); print(first, second)"
    )
    assert run(installed, code, "1")[0] == "[True] True\n"
