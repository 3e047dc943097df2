"""The command line itself: help, errors of one line, logging."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_autoperfect.cli import main as cli
from mlx_autoperfect.errors import ModelError
from tests.cli.conftest import Done

Command = Callable[..., Done]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_names_every_command_and_imports_none() -> None:
    done = python(
        "import sys, atexit\n"
        "atexit.register(lambda: print('heavy:', [m for m in ('mlx.core', 'numpy', 'rich') if m in sys.modules]))\n"
        "from mlx_autoperfect.cli.main import main\nmain(['--help'])"
    )
    assert done.returncode == 0
    assert "heavy: []" in done.stdout
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "run"])
def test_the_short_help_is_the_same_with_and_without_the_module(name: str) -> None:
    def help_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
        action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        return {choice.dest: choice.help for choice in action._choices_actions}

    assert help_of(cli.make_parser(name)) == help_of(cli.make_parser())


def test_a_bad_setting_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPERFECT_FUEL", "abc")
    done = command("doctor")
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert "AUTOPERFECT_FUEL" in done.err and "'abc'" in done.err


def test_interruption(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_autoperfect.cli.cache.print_path", interrupted)
    done = command("cache", "path")
    assert done.status == 130
    assert done.err.count("\n") == 1


def test_a_reader_that_left_is_no_error() -> None:
    done = python(
        "import io, sys\n"
        "class Closed(io.StringIO):\n"
        "    def flush(self): raise BrokenPipeError\n"
        "from mlx_autoperfect.cli.main import main\n"
        "sys.stdout = Closed()\n"
        "sys.exit(main(['cache', 'path']))"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_run_passes_its_words_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    words = [sys.executable, "-m", "mlx_autoperfect.cli.main", "run", str(script), "--help", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "['--help', '--json']\n"


@pytest.mark.parametrize(("debug", "shown"), [(0, ["warned"]), (1, ["told", "warned"])])
def test_logging_is_plain_lines(debug: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mlx_autoperfect")
    before = logger.handlers[:], logger.propagate, logger.level
    try:
        cli.start_logging(debug)
        logger.info("told")
        logger.warning("warned")
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])
    assert capsys.readouterr().err.splitlines() == shown


def _missing(folder: Path) -> Path:
    return folder / "nowhere"


def _file(folder: Path) -> Path:
    return folder / "config.json"


def _without_config(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


def _unknown_architecture(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    return folder


def _no_json(folder: Path) -> Path:
    (folder / "config.json").write_text("{")
    return folder


def _truncated(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def _other_weights(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))
    return folder


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_missing, "nowhere"),
        (_file, "is a file"),
        (_without_config, "config.json"),
        (_unknown_architecture, "unheard_of"),
        (_no_json, "cannot load"),
        (_truncated, "cannot load"),
        (_other_weights, "cannot load"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(
    damage: Callable[[Path], Path], word: str, model_folder: Path, tmp_path: Path, command: Command
) -> None:
    folder = damage(Path(shutil.copytree(model_folder, tmp_path / "copy")))
    done = command("explain", folder)
    assert done.status == 2
    assert done.out == ""
    ours = [line for line in done.err.splitlines() if line.startswith("mlx-autoperfect explain: ")]
    assert len(ours) == 1 and word in ours[0]
    assert "Traceback" not in done.err


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_autoperfect.cli.loading import resolve_model

    monkeypatch.setenv("AUTOPERFECT_CACHE_DIR", str(tmp_path))
    (tmp_path / "models" / "fetched").mkdir(parents=True)
    assert resolve_model("fetched") == str(tmp_path / "models" / "fetched")
    assert resolve_model("owner/name") == "owner/name"
    for wrong in ("unknown", "./owner/name", "/a", "a/b/c", "~/x"):
        with pytest.raises(ModelError, match="no model folder"):
            resolve_model(wrong)
