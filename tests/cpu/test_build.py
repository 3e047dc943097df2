"""The compile cache: hits, damage, several processes, interrupts, and folders that cannot be written to."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_autoperfect.errors import Failure, Reason
from mlx_autoperfect_cpu.build import BuildCache, BuildFailure, Library, SourceUnit
from mlx_autoperfect_cpu.compiler import CompilerRuns
from mlx_autoperfect_cpu.toolchain import Toolchain, find_toolchain

PROBE = """
import sys
from pathlib import Path
from mlx_autoperfect_cpu.build import BuildCache, SourceUnit
from mlx_autoperfect_cpu.toolchain import find_toolchain
root = Path(sys.argv[1])
units = [SourceUnit(f"unit{i}", f'extern "C" int number() {{ return {i}; }}', ()) for i in range(3)]
libraries = BuildCache(root).compile_and_load(units, find_toolchain(cache_dir=root))
print([library.handle.number() for library in libraries])
"""


def unit(value: int, name: str = "unit") -> SourceUnit:
    return SourceUnit(name, f'extern "C" int number() {{ return {value}; }}', ())


def compiled(cache: BuildCache, toolchain: Toolchain, value: int) -> Path:
    path = cache.compile([unit(value)], toolchain)[0]
    assert isinstance(path, Path), str(path)
    return path


def number(cache: BuildCache, path: Path | Failure) -> int:
    assert isinstance(path, Path), str(path)
    library = cache.load(path)
    assert isinstance(library, Library), str(library)
    return int(library.handle.number())


def current(root: Path) -> Toolchain:
    found = find_toolchain(cache_dir=root)
    assert isinstance(found, Toolchain)
    return found


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.name.startswith(".") or path.suffix == ".cpp"]


def test_compiles_once(tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BuildCache(tmp_path)
    first = cache.compile([unit(7), unit(8)], toolchain)
    assert [number(cache, path) for path in first] == [7, 8]
    monkeypatch.setattr(CompilerRuns, "run", lambda *_: pytest.fail("ran the compiler"))
    assert BuildCache(tmp_path).compile([unit(8), unit(7)], toolchain) == first[::-1]
    assert leftovers(tmp_path) == []


def test_the_same_unit_twice_in_one_call_is_compiled_once(tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    fake_compiler(f"echo run >> {tmp_path}/runs")
    paths = BuildCache(tmp_path).compile([unit(1), unit(1)], current(tmp_path))
    assert paths[0] == paths[1]
    assert (tmp_path / "runs").read_text() == "run\n"


def test_every_input_is_part_of_the_key(tmp_path: Path, toolchain: Toolchain) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "value.h").write_text("#define VALUE 1\n")
    text = '#include "value.h"\nextern "C" int number() { return VALUE; }'
    cache = BuildCache(tmp_path)
    source = SourceUnit("unit", text, (headers,))
    paths = cache.compile([source], toolchain)
    (headers / "value.h").write_text("#define VALUE 2\n")
    paths += cache.compile([source], toolchain)
    paths += cache.compile([SourceUnit("unit", text, (headers,), ("-DX",))], toolchain)
    paths += cache.compile([SourceUnit("unit", text, (headers,), salt="mlx 0.33")], toolchain)
    portable = find_toolchain("portable", cache_dir=tmp_path)
    assert isinstance(portable, Toolchain)
    paths += cache.compile([source], portable)
    assert len(set(map(str, paths))) == 5
    assert [number(cache, path) for path in paths[:2]] == [1, 2]


def test_an_error_is_a_value_and_spares_the_others(tmp_path: Path, toolchain: Toolchain) -> None:
    done: list[str] = []
    bad = SourceUnit("broken", "int f() { return nothing; }", ())
    cache = BuildCache(tmp_path)
    good, failure = cache.compile([unit(3), bad], toolchain, lambda source: done.append(source.name))
    assert number(cache, good) == 3
    assert isinstance(failure, BuildFailure)
    assert (failure.reason, failure.where) == (Reason.COMPILE_ERROR, "broken")
    assert "broken.cpp:1:" in failure.detail
    assert "nothing" in failure.detail
    assert sorted(done) == ["broken", "unit"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", ["empty", "truncated", "changed", "no record", "bad record"])
def test_a_damaged_entry_is_rebuilt(damage: str, tmp_path: Path, toolchain: Toolchain) -> None:
    cache = BuildCache(tmp_path)
    path = compiled(cache, toolchain, 5)
    record = path.with_suffix(".json")
    content = path.read_bytes()
    actions: dict[str, Callable[[], object]] = {
        "empty": lambda: path.write_bytes(b""),
        "truncated": lambda: path.write_bytes(content[: len(content) // 2]),
        "changed": lambda: path.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        "no record": record.unlink,
        "bad record": lambda: record.write_text("{"),
    }
    actions[damage]()
    assert number(cache, cache.compile([unit(5)], toolchain)[0]) == 5
    rebuilt = path.read_bytes()
    assert json.loads(record.read_text()) == {"size": len(rebuilt), "sha256": hashlib.sha256(rebuilt).hexdigest()}


def test_an_entry_that_does_not_load_is_rebuilt(tmp_path: Path, toolchain: Toolchain) -> None:
    cache = BuildCache(tmp_path)
    path = compiled(cache, toolchain, 6)
    path.unlink()
    path.write_bytes(b"no library")
    digest = hashlib.sha256(b"no library").hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"size": 10, "sha256": digest}))
    failure = cache.load(compiled(cache, toolchain, 6))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.LOAD_ERROR
    path.with_suffix(".json").write_text(json.dumps({"size": 10, "sha256": digest}))
    library = cache.compile_and_load([unit(6)], toolchain)[0]
    assert isinstance(library, Library)
    assert library.handle.number() == 6


def test_address_of_a_symbol(tmp_path: Path, toolchain: Toolchain) -> None:
    library = BuildCache(tmp_path).compile_and_load([unit(4)], toolchain)[0]
    assert isinstance(library, Library)
    assert library.address("number") > 0
    with pytest.raises(LookupError, match="exports no function 'absent'"):
        library.address("absent")


def test_two_processes_at_once_compile_once(tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    fake_compiler(f"echo run >> {tmp_path}/runs; sleep 0.3")
    root = tmp_path / "cache"
    command = [sys.executable, "-c", PROBE, str(root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["[0, 1, 2]\n"] * 2
    assert (tmp_path / "runs").read_text() == "run\n" * 3
    assert leftovers(root) == []


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, toolchain: Toolchain, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = BuildCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "mlx_autoperfect"):
        paths = cache.compile([unit(1), unit(2)], toolchain)
        paths += cache.compile([unit(1)], toolchain)
    assert [number(cache, path) for path in paths] == [1, 2, 1]
    assert paths[0] == paths[2]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "CACHE_UNWRITABLE" in messages[0]
    assert "AUTOPERFECT_CACHE_DIR" in messages[0]
    assert "\n" not in messages[0]


def test_entries_of_a_read_only_folder_are_used(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled(BuildCache(tmp_path), toolchain, 9)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("wrote to the folder"))
    assert compiled(BuildCache(tmp_path), toolchain, 9) == path


def test_a_full_disk(tmp_path: Path, fake_compiler: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "full"
    fake_compiler(f'case "$PWD" in {root}*) echo "x.s: No space left on device" >&2; exit 1;; esac')
    cache = BuildCache(root)
    path = compiled(cache, current(tmp_path), 2)
    assert number(cache, path) == 2
    assert not path.is_relative_to(root)
    assert "No space left on device" in caplog.text


def test_nowhere_to_write(tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    failure = BuildCache(tmp_path / "file").compile([unit(1)], toolchain)[0]
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.CACHE_UNWRITABLE


def test_time_limit_ends_the_compiler(tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    fake_compiler(f"echo $$ > {tmp_path}/pid; sleep 100")
    failure = BuildCache(tmp_path, timeout=0.5).compile([unit(1)], current(tmp_path))[0]
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.COMPILE_TIMEOUT
    assert not alive(int((tmp_path / "pid").read_text()))
    assert leftovers(tmp_path) == []


def test_interrupt_leaves_nothing(tmp_path: Path, fake_compiler: Callable[[str], Path]) -> None:
    fake_compiler(f"echo half > out.so; echo $$ > {tmp_path}/pid; sleep 100")
    root = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROBE, str(root)], env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for((tmp_path / "pid").exists)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not alive(int((tmp_path / "pid").read_text()))
    assert leftovers(root) == []
    assert [path.name for path in root.rglob("*.so")] == []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
