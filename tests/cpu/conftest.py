"""Shared by the CPU backend's tests: one compile cache for the session, and compilers that misbehave on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_autoperfect.errors import Failure
from mlx_autoperfect_cpu.extension import Backend, load_backend
from mlx_autoperfect_cpu.toolchain import Toolchain, find_toolchain


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the session; the process's own setting wins, so that a warm cache can be reused."""
    with pytest.MonkeyPatch.context() as patch:
        folder = os.environ.get("AUTOPERFECT_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
        patch.setenv("AUTOPERFECT_CACHE_DIR", folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def toolchain(cache_dir: Path) -> Toolchain:
    found = find_toolchain(cache_dir=cache_dir)
    if isinstance(found, Failure):
        pytest.skip(str(found))
    return found


@pytest.fixture(scope="session")
def backend(toolchain: Toolchain) -> Backend:
    found = load_backend()
    assert not isinstance(found, Failure), str(found)
    return found


@pytest.fixture
def fake_compiler(tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes CXX a shell script: `before` runs ahead of the real compiler, except when it is only probed."""

    def make(before: str) -> Path:
        script = tmp_path / "cxx"
        probing = 'case " $* " in *" --version "*|*" -E "*) ;; *)\n' + before + "\n;; esac\n"
        script.write_text(f'#!/bin/sh\n{probing}exec {toolchain.compiler} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    return make
