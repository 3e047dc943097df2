"""What a machine is, and how fast it reads."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mlx_autoperfect import device
from mlx_autoperfect.errors import Failure, Reason, Stage, UnavailableError
from mlx_autoperfect.hookspecs import Backend


def test_description() -> None:
    found = device.describe()
    assert found.cpu and found.system
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.versions["mlx"].count(".") >= 1
    assert set(found.versions) <= set(device.PACKAGES)


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="reads Linux's own figure")  # noqa: PTH110
def test_memory_is_what_linux_says() -> None:
    with open("/proc/meminfo") as lines:  # noqa: PTH123
        kilobytes = int(next(line for line in lines if line.startswith("MemTotal")).split()[1])
    assert device.describe().memory == pytest.approx(kilobytes * 1024, rel=0.01)


def test_bandwidth_by_a_compiled_kernel(cpu: Backend) -> None:
    found = device.read_bandwidth(1, 8 * device.MIB)
    assert found.method == "compiled"
    assert found.size == 8 * device.MIB
    assert found.gb_s > 0


def test_bandwidth_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(**_: Any) -> Any:
        raise UnavailableError(Failure(Stage.SETUP, Reason.NO_COMPILER, "none"))

    monkeypatch.setattr("mlx_autoperfect_cpu.cpu_kernel.cpu_kernel", unavailable)
    found = device.read_bandwidth(2, 8 * device.MIB)
    assert found.method == "numpy"
    assert found.gb_s > 0


@pytest.mark.parametrize(
    ("memory", "expected"), [(64, [1, 8]), (32, [1]), (4, [1]), (0, [1])], ids=["all", "one", "least", "unknown"]
)
def test_the_probe_leaves_memory_for_others(memory: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_memory", lambda: memory * device.MIB)
    monkeypatch.setattr(device, "_best", lambda run: 1.0)
    monkeypatch.setattr("mlx_autoperfect_cpu.cpu_kernel.cpu_kernel", lambda **_: None)
    found = device.probe_bandwidth(1, (device.MIB, 8 * device.MIB))
    assert [each.size // device.MIB for each in found] == expected


def test_every_byte_of_the_size_is_read(cpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    from mlx_autoperfect import cpu_kernel

    seen: list[int] = []

    def spying(**options: Any) -> Any:
        kernel = cpu_kernel(**options)

        def call(**arguments: Any) -> Any:
            results = kernel(**arguments)
            # Every element is 1, so the sums count what was read.
            seen.append(int(mx.sum(results[0].astype(mx.int64)).item()) * 4)
            return results

        return call

    monkeypatch.setattr("mlx_autoperfect_cpu.cpu_kernel.cpu_kernel", spying)
    device.probe_bandwidth(2, (2 * device.MIB, 8 * device.MIB))
    assert set(seen) == {2 * device.MIB, 8 * device.MIB}
