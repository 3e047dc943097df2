"""The compiler is found, described and remembered; what is missing is said in one line."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_autoperfect.errors import Failure, Reason
from mlx_autoperfect_cpu import headers, probe
from mlx_autoperfect_cpu.toolchain import ISAS, Toolchain, find_toolchain


def found(**arguments: object) -> Toolchain:
    result = find_toolchain(**arguments)  # type: ignore[arg-type]
    assert isinstance(result, Toolchain), str(result)
    return result


def failed(**arguments: object) -> Failure:
    result = find_toolchain(**arguments)  # type: ignore[arg-type]
    assert isinstance(result, Failure)
    return result


def test_describes_the_compiler(toolchain: Toolchain) -> None:
    assert toolchain.isa in ISAS
    assert toolchain.version
    assert Path(toolchain.command[0]).is_file()
    assert {"-O3", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-ffp-contract=fast"} <= set(toolchain.flags)
    assert "-ffast-math" not in toolchain.flags
    assert ("-mprefer-vector-width=512" in toolchain.flags) == (toolchain.isa == "avx512")


def test_fingerprint_is_stable_and_depends_on_the_flags(toolchain: Toolchain, cache_dir: Path) -> None:
    assert found(cache_dir=cache_dir).fingerprint == toolchain.fingerprint
    assert found(isa="portable", cache_dir=cache_dir).fingerprint != toolchain.fingerprint


def test_portable_flags_enable_no_vector_extension(toolchain: Toolchain, cache_dir: Path) -> None:
    portable = found(isa="portable", cache_dir=cache_dir)
    listing = probe._output([*portable.command, *portable.flags, "-dM", "-E", "-x", "c++", os.devnull])
    assert listing is not None
    assert "#define AP_ISA_PORTABLE 1" in listing
    assert "__AVX" not in listing


def test_avx2_flags_on_a_machine_with_avx512(toolchain: Toolchain, cache_dir: Path) -> None:
    if toolchain.isa != "avx512":
        pytest.skip("needs a processor with AVX-512")
    avx2 = found(isa="avx2", cache_dir=cache_dir)
    listing = probe._output([*avx2.command, *avx2.flags, "-dM", "-E", "-x", "c++", os.devnull])
    assert listing is not None
    assert avx2.isa == "avx2"
    assert all(f"#define {name} 1" in listing for name in ("__AVX2__", "__FMA__", "__F16C__"))
    assert "__AVX512" not in listing


def test_an_instruction_set_of_another_processor_is_refused(toolchain: Toolchain, cache_dir: Path) -> None:
    other = "avx2" if toolchain.isa == "neon" else "neon"
    assert failed(isa=other, cache_dir=cache_dir).reason is Reason.NO_BACKEND


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    failure = failed(cache_dir=tmp_path)
    assert failure.reason is Reason.NO_COMPILER
    assert failure.detail == ("no C++ compiler found: install g++ or clang++, or set CXX; running stock mlx-lm")


@pytest.mark.parametrize("value", ["/nowhere/g++", "false", "'unbalanced", "true"])
def test_a_bad_cxx_is_named(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", value)
    if value == "true":  # runs, but prints no macros and so compiles for nothing in particular
        assert found(cache_dir=tmp_path).isa == "portable"
        return
    failure = failed(cache_dir=tmp_path)
    assert failure.reason is Reason.NO_COMPILER
    assert "CXX" in failure.detail
    assert "\n" not in failure.detail


def test_cxx_may_be_several_words(toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"env {toolchain.compiler}")
    assert found(cache_dir=tmp_path).command[1:] == toolchain.command


def test_a_second_search_runs_no_program(toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(cache_dir=tmp_path)
    monkeypatch.setattr(probe, "_output", lambda command: pytest.fail(f"ran {command}"))
    assert found(cache_dir=tmp_path) == first


def test_a_changed_compiler_is_asked_again(fake_compiler: Callable[[str], Path], tmp_path: Path) -> None:
    script = fake_compiler("true")
    first = found(cache_dir=tmp_path)
    script.write_text(script.read_text().replace("exec", 'case "$1" in --version) echo "new 2.0"; exit 0;; esac\nexec'))
    second = found(cache_dir=tmp_path)
    assert second.version == "new 2.0"
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_damaged_notes_cost_a_probe_only(content: str, toolchain: Toolchain, tmp_path: Path) -> None:
    first = found(cache_dir=tmp_path)
    (tmp_path / "cpu" / "toolchains.json").write_text(content)
    assert found(cache_dir=tmp_path) == first


def test_an_unwritable_folder_is_no_obstacle(toolchain: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert found(cache_dir=tmp_path / "file").fingerprint == toolchain.fingerprint


def test_missing_python_headers(tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    failure = failed(cache_dir=tmp_path)
    assert failure.reason is Reason.NO_HEADERS
    assert "Python.h" in failure.detail
    assert "python3-dev" in failure.detail


@pytest.mark.parametrize("package", ["mlx", "nanobind"])
def test_missing_package(package: str, toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = headers._package_folders
    monkeypatch.setattr(headers, "_package_folders", lambda name: () if name == package else original(name))
    failure = failed(cache_dir=tmp_path)
    assert failure.reason is Reason.NO_HEADERS
    assert package in failure.detail.lower()


def test_wrong_nanobind(toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "include" / "nanobind"
    folder.mkdir(parents=True)
    (folder / "nanobind.h").write_text(
        "#define NB_VERSION_MAJOR 2\n#define NB_VERSION_MINOR 9\n#define NB_VERSION_PATCH 1\n"
    )
    original = headers._package_folders
    monkeypatch.setattr(headers, "_package_folders", lambda name: [tmp_path] if name == "nanobind" else original(name))
    failure = failed(cache_dir=tmp_path)
    assert failure.reason is Reason.NO_HEADERS
    assert "nanobind 2.9.1" in failure.detail
    assert "nanobind>=3.1" in failure.detail
