"""The installed mlx-lm itself, offline, with a tiny model: its commands, its answers and its errors."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

CORE = ("core_recording",)
PROMPT = ["--prompt", "hello", "--max-tokens", "8", "--ignore-chat-template", "--verbose", "False"]

HELP = """
import contextlib, importlib, io, json, sys
from mlx_autoperfect_lm._commands import ANSWERING, SAVING
for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry", "datasets"):
    stand_in = sys.modules.setdefault(name, type(sys)(name))
    stand_in.LM, stand_in.register_model, stand_in.load_dataset = object, lambda name: lambda cls: cls, None
shown = {}
for name in sorted(ANSWERING | SAVING):
    module = importlib.import_module(name)
    text = io.StringIO()
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        module.main()
    shown[name] = ["--autoperfect | --no-autoperfect" in text.getvalue(), name in ANSWERING, "usage" in text.getvalue()]
print(json.dumps(shown))
"""


def test_every_command_that_answers_lists_the_flag_and_no_other_does(installed) -> None:
    result = installed.run("-c", HELP, env={"AUTOPERFECT": "1"}, fakes=CORE)
    shown = json.loads(result.stdout or "{}")
    assert len(shown) == 17, result.stderr
    for name, (listed, expected, helped) in shown.items():
        assert (name, listed, helped) == (name, expected, True)


def test_the_commands_are_mlx_lms_console_scripts() -> None:
    from importlib.metadata import distribution

    from mlx_autoperfect_lm._commands import COMMANDS

    scripts = {entry.module for entry in distribution("mlx-lm").entry_points if entry.group == "console_scripts"}
    assert scripts == COMMANDS | {"mlx_lm.cli"}


def test_the_load_functions_have_the_shape_the_host_expects() -> None:
    import inspect

    import mlx_lm.utils

    from mlx_autoperfect_lm._commands import LOADERS

    for name in LOADERS:
        assert inspect.isfunction(getattr(mlx_lm.utils, name))
    assert "lazy" in inspect.signature(mlx_lm.utils.load).parameters
    assert "lazy" in inspect.signature(mlx_lm.utils.load_model).parameters


@pytest.fixture(scope="module")
def stock_answer(installed, tiny_model) -> str:
    result = installed.run(installed.root / "bin" / "mlx_lm.generate", "--model", tiny_model, *PROMPT, fakes=CORE)
    assert (result.returncode, "CORE" in result.stderr) == (0, False), result.stderr
    assert result.stdout.strip()
    return result.stdout


def test_generate_with_a_draft_model_patches_both_and_answers_the_same(installed, tiny_model, stock_answer) -> None:
    words = ["--autoperfect", "--model", tiny_model, "--draft-model", tiny_model, *PROMPT]
    result = installed.run("-m", "mlx_lm", "generate", *words, fakes=CORE)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("CORE optimize Model") == 2
    assert result.stdout == stock_answer


def test_generate_run_as_a_module_with_a_broken_core(installed, tiny_model, stock_answer) -> None:
    words = ["-m", "mlx_lm.generate", "--autoperfect", "--model", tiny_model, *PROMPT]
    result = installed.run(*words, fakes=("core_broken",))
    assert result.returncode == 0
    assert result.stdout.startswith("Calling `python -m mlx_lm.generate...` directly is deprecated")
    assert result.stdout.endswith(f"\n{stock_answer}")
    assert result.stderr.count("autoperfect: ImportError: libmissing.so") == 1
    assert "Traceback" not in result.stderr


LOAD_BAD_FOLDERS = """
import sys
from mlx_lm import load
for folder in sys.argv[1:]:
    try:
        load(folder)
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


def test_bad_model_folders_raise_mlx_lms_own_errors_and_reach_no_core(installed, tiny_model, tmp_path) -> None:
    folders = {name: tmp_path / name for name in ("unknown", "truncated", "quantized", "no_weights")}
    for folder in folders.values():
        shutil.copytree(tiny_model, folder)
    config = json.loads((tiny_model / "config.json").read_text())
    (folders["unknown"] / "config.json").write_text(json.dumps(config | {"model_type": "no_such_architecture"}))
    quantization = {"quant_method": "modelopt", "quant_algo": "NO_SUCH"}
    (folders["quantized"] / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    weights = folders["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folders["no_weights"] / "model.safetensors").unlink()
    words = ["-c", LOAD_BAD_FOLDERS, tmp_path / "missing", *folders.values()]
    stock = installed.run(*words, fakes=CORE)
    result = installed.run(*words, fakes=CORE, env={"AUTOPERFECT": "1"})
    assert len(stock.stdout.splitlines()) == 5, stock.stdout + stock.stderr
    assert (result.returncode, result.stdout) == (0, stock.stdout)
    assert "CORE" not in result.stderr


def test_a_truncated_model_prints_a_traceback_without_our_frames(installed, tiny_model, tmp_path) -> None:
    folder = tmp_path / "truncated"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    words = ["--autoperfect", "--model", folder, *PROMPT]
    result = installed.run(installed.root / "bin" / "mlx_lm.generate", *words, fakes=CORE)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "mlx_autoperfect" not in result.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_server_patches_the_model_it_loads_in_its_own_thread(installed, tiny_model, tmp_path) -> None:
    port, log = _free_port(), tmp_path / "log"
    words = ["-m", "mlx_lm", "server", "--autoperfect", "--model", str(tiny_model), "--port", str(port)]
    env = {"PATH": "", "PYTHONPATH": str(Path(__file__).parent / "fakes" / CORE[0]), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as stream:
        server = subprocess.Popen([installed.python, *words], stdout=stream, stderr=stream, env=env, cwd=tmp_path)
    try:
        body = json.dumps({"prompt": "hello", "max_tokens": 4}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body)
        request.add_header("Content-Type", "application/json")
        for _ in range(300):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    reply = json.loads(answer.read())
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
        assert reply["usage"]["completion_tokens"] == 4
        assert log.read_text().count("CORE optimize Model") == 1
    finally:
        server.kill()
        server.wait()
