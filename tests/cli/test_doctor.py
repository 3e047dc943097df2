"""``doctor``: what it says, and when it says no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mlx_autoperfect.cli import doctor
from mlx_autoperfect.device import MIB, Bandwidth
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.settings import TABLE, Settings
from tests.cli.conftest import Done

Command = Callable[..., Done]


class FakeBackend:
    """As much of a backend as ``doctor`` looks at."""

    def __init__(self, name: str, failure: Failure | None = None) -> None:
        self.name = name
        self.failure = failure

    def status(self) -> Failure | None:
        return self.failure


class TalkingBackend(FakeBackend):
    def describe(self) -> Mapping[str, str]:
        return {"compiler": "c++ 99"}


NO_COMPILER = Failure(Stage.SETUP, Reason.NO_COMPILER, "no C++ compiler found: install g++")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that takes no time."""
    monkeypatch.setattr("mlx_autoperfect.device.probe_bandwidth", lambda threads: (Bandwidth(MIB, 12.5, "compiled"),))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts other backends in place of those that are installed."""

    def install(*backends: FakeBackend) -> None:
        for module in ("hookspecs", "api"):
            monkeypatch.setattr(f"mlx_autoperfect.{module}.backends", lambda _: list(backends))

    return install


@pytest.mark.usefixtures("quick")
def test_a_machine_that_is_ready(cpu: Backend, command: Command) -> None:
    done = command("doctor")
    assert done.status == 0
    assert done.out.splitlines()[-1] == "ready: kernels run on the backend 'cpu'"
    assert "12.5 GB/s over 1 MiB (compiled)" in done.out
    assert all(variable.name in done.out for variable in TABLE)


@pytest.mark.usefixtures("quick")
def test_json(cpu: Backend, command: Command, kernel_cache: Path) -> None:
    found = json.loads(command("doctor", "--json").out)
    assert found["chosen"] == "cpu"
    assert found["problem"] == ""
    assert found["cache_dir"] == str(kernel_cache)
    assert found["cache_bytes"] > 0
    assert found["device"]["cores"] >= 1
    assert found["settings"]["AUTOPERFECT_CACHE_DIR"] == str(kernel_cache)


@pytest.mark.usefixtures("quick")
def test_no_backend_works(installed: Callable[..., None], command: Command) -> None:
    installed(FakeBackend("cpu", NO_COMPILER))
    done = command("doctor")
    assert done.status == 1
    assert done.out.splitlines()[-1] == "not ready: NO_COMPILER: no C++ compiler found: install g++"


@pytest.mark.usefixtures("quick")
def test_no_backend_is_installed(installed: Callable[..., None], command: Command) -> None:
    installed()
    done = command("doctor")
    assert done.status == 1
    assert "NO_BACKEND" in done.out.splitlines()[-1]


@pytest.mark.usefixtures("quick")
def test_the_next_backend_is_chosen(installed: Callable[..., None], command: Command) -> None:
    installed(FakeBackend("broken", NO_COMPILER), TalkingBackend("works"))
    done = command("doctor")
    assert done.status == 0
    assert done.out.splitlines()[-1] == "ready: kernels run on the backend 'works'"
    assert "no C++ compiler found" in done.out
    assert "c++ 99" in done.out


@pytest.mark.usefixtures("quick")
def test_switched_off(cpu: Backend, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPERFECT", "0")
    done = command("doctor")
    assert done.status == 1
    assert "AUTOPERFECT" in done.out.splitlines()[-1]


def test_a_compiler_that_does_not_run(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "nothing"), "AUTOPERFECT_CACHE_DIR": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "mlx_autoperfect.cli.main", "doctor"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("not ready: NO_COMPILER: CXX is ")
    assert "Traceback" not in done.stderr


def test_the_hook_is_found_where_python_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "a"))
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path / "b")])
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path / "c"))
    assert doctor.find_hook() is None
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mlx_autoperfect.pth").touch()
    assert doctor.find_hook() == tmp_path / "b" / "mlx_autoperfect.pth"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    assert doctor._unwritable(tmp_path / "new" / "folder") == ""
    assert "is a file" in doctor._unwritable(file / "cache")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "read-only" in doctor._unwritable(tmp_path)


def test_settings_in_force_are_shown(tmp_path: Path) -> None:
    shown = doctor._in_force(Settings(cache_dir=tmp_path, fuel=0, threads=3))
    assert (shown["AUTOPERFECT_FUEL"], shown["AUTOPERFECT_THREADS"]) == ("0", "3")
    assert shown["AUTOPERFECT_BACKEND"] == "default"
