"""The flag on every way to start an mlx-lm command, and its order of precedence."""

from __future__ import annotations

import json
from typing import Any

import pytest

MLX_LM = ("core_recording", "mlx_lm")
NAMESPACE = {"model": "tiny", "adapter_path": None, "draft_model": None}

WAYS = {
    "console script": ["{bin}/mlx_lm.generate"],
    "subcommand script": ["{bin}/mlx_lm", "generate"],
    "-m package": ["-m", "mlx_lm", "generate"],
    "-m module": ["-m", "mlx_lm.generate"],
    "-mmodule": ["-mmlx_lm.generate"],
    "-m after options": ["-X", "utf8", "-W", "ignore", "-m", "mlx_lm", "generate"],
}


def start(installed: Any, way: str, *arguments: str, **kwargs: Any) -> Any:
    words = [word.format(bin=installed.root / "bin") for word in WAYS[way]]
    return installed.run(*words, *arguments, **{"fakes": MLX_LM, **kwargs})


def report(result: Any) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


@pytest.mark.parametrize("way", WAYS)
def test_flag_patches_the_model_and_leaves_no_trace_in_the_namespace(installed, way) -> None:
    result = start(installed, way, "--autoperfect", "--draft-model", "draft", "--adapter-path", "a")
    seen = report(result)
    assert (seen["patched"], seen["draft_patched"]) == (True, True)
    assert seen["args"] == {"model": "tiny", "adapter_path": "a", "draft_model": "draft"}
    assert result.stderr.count("CORE optimize Model") == 2
    assert seen["stock_argparse"], "other programs' parsers must not be touched"


@pytest.mark.parametrize("way", WAYS)
def test_without_the_flag_stock_functions_run_and_no_core_is_imported(installed, way) -> None:
    result = start(installed, way)
    seen = report(result)
    assert (seen["patched"], seen["stock_load"], seen["args"]) == (False, True, NAMESPACE)
    assert "mlx_autoperfect" not in seen["ours"]
    assert "CORE" not in result.stderr


@pytest.mark.parametrize("way", WAYS)
def test_help_shows_the_flag_once(installed, way) -> None:
    result = start(installed, way, "--help")
    assert result.returncode == 0
    assert result.stdout.count("[--autoperfect | --no-autoperfect]") == 1
    assert "\nautoperfect:\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "value", "patched"),
    [
        ([], None, False),
        ([], "1", True),
        ([], "on", True),
        ([], "0", False),
        ([], "", False),
        (["--autoperfect"], None, True),
        (["--autoperfect"], "1", True),
        (["--autoperfect"], "0", False),
        (["--autoperfect"], "no", False),
        (["--no-autoperfect"], None, False),
        (["--no-autoperfect"], "1", False),
        (["--no-autoperfect", "--autoperfect"], None, False),
        (["--autoperfect", "--no-autoperfect"], "1", False),
        (["--autop"], None, True),
        (["--no-auto"], "1", False),
    ],
)
@pytest.mark.parametrize("way", ["console script", "-m module"])
def test_whatever_says_off_wins(installed, way, arguments, value, patched) -> None:
    env = {} if value is None else {"AUTOPERFECT": value}
    assert report(start(installed, way, *arguments, env=env))["patched"] is patched


def test_the_variable_that_beats_the_flag_is_named(installed) -> None:
    result = start(installed, "console script", "--autoperfect", env={"AUTOPERFECT": "0"})
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("autoperfect: AUTOPERFECT in the environment says off")


@pytest.mark.parametrize("way", ["console script", "-m module"])
def test_abbreviations_of_stock_options_keep_their_meaning(installed, way) -> None:
    seen = report(start(installed, way, "--a", "folder"))
    assert (seen["args"]["adapter_path"], seen["patched"]) == ("folder", False)


@pytest.mark.parametrize("way", ["console script", "-m module"])
def test_a_wrong_option_fails_as_in_stock(installed, way) -> None:
    result = start(installed, way, "--autoperfekt")
    assert result.returncode == 2
    assert "unrecognized arguments: --autoperfekt" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [["{bin}/mlx_lm.lora"], ["-m", "mlx_lm.lora"], ["-m", "mlx_lm", "lora"]])
@pytest.mark.parametrize(("arguments", "value", "lines"), [(["--autoperfect"], None, 1), ([], "1", 0)])
def test_a_command_that_saves_weights_gets_the_stock_model(installed, words, arguments, value, lines) -> None:
    env = {} if value is None else {"AUTOPERFECT": value}
    words = [word.format(bin=installed.root / "bin") for word in words]
    result = installed.run(*words, *arguments, fakes=MLX_LM, env=env)
    assert report(result) == {"args": {"model": "tiny"}, "patched": False}
    assert result.stderr.count("autoperfect: mlx_lm.lora trains, saves") == lines
    assert len([line for line in result.stderr.splitlines() if "RuntimeWarning" not in line]) == lines


def test_a_command_that_saves_weights_hides_the_flag(installed) -> None:
    assert "autoperfect" not in installed.run("-m", "mlx_lm", "lora", "--help", fakes=MLX_LM).stdout


def test_a_lazy_load_is_not_patched(installed) -> None:
    result = installed.run("-m", "mlx_lm", "convert", fakes=MLX_LM, env={"AUTOPERFECT": "1"})
    assert report(result) == {"patched": False}
    assert "CORE" not in result.stderr


@pytest.mark.parametrize("words", [["{bin}/mlx_lm.server"], ["-m", "mlx_lm.server"]])
@pytest.mark.parametrize("more", [[], ["--sharded"]])
def test_loading_in_another_thread_and_in_shards(installed, words, more) -> None:
    words = [word.format(bin=installed.root / "bin") for word in words]
    result = installed.run(*words, "--autoperfect", *more, fakes=MLX_LM)
    assert result.stdout == "patched True\n", result.stderr
    assert result.stderr.count("CORE optimize") == 1
