"""``cache``: only what is ours is removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPERFECT_CACHE_DIR", str(tmp_path))
    for name in ("cpu/ab/entry.so", "verdicts/cd/verdict.json", "models/m/config.json", "mine/notes.txt", "top.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    return tmp_path


def left(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_path(cache: Path, command: Callable[..., Done]) -> None:
    assert command("cache", "path").out == f"{cache}\n"


def test_clear_keeps_models_and_what_is_not_ours(cache: Path, command: Callable[..., Done]) -> None:
    done = command("cache", "clear")
    assert done.status == 0
    assert left(cache) == {"models", "mine", "top.txt"}
    assert (cache / "models" / "m" / "config.json").exists()


def test_clear_models(cache: Path, command: Callable[..., Done]) -> None:
    command("cache", "clear", "--models")
    assert left(cache) == {"mine", "top.txt"}


def test_clear_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Done]) -> None:
    monkeypatch.setenv("AUTOPERFECT_CACHE_DIR", str(tmp_path / "none"))
    assert command("cache", "clear").out.startswith("removed 0.0 MB")
