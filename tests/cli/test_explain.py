"""``explain`` and ``verify`` on a folder, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.verify.judge import Verdict
from mlx_autoperfect.verify.request import Request
from tests.cli.conftest import Done

pytestmark = pytest.mark.usefixtures("cpu")
Command = Callable[..., Done]


def test_explain(model_folder: Path, command: Command) -> None:
    done = command("explain", model_folder)
    assert (done.status, done.err) == (0, "")
    assert "model.layers.0-1: 2 blocks share one graph" in done.out
    assert "rms_gate_up_swiglu" in done.out


def test_explain_json(model_folder: Path, command: Command) -> None:
    report = json.loads(command("explain", model_folder, "--json").out)
    assert report["verified"] > 0
    assert report["rejected"] == 0
    assert {section["role"] for section in report["sections"]} >= {"root", "block", "linear"}


def test_explain_at_a_debug_level(model_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPERFECT_DEBUG", "2")
    done = command("explain", model_folder)
    assert "timing prove" in done.err and "decision " in done.err
    assert "timing prove" not in done.out


def test_verify_replays_a_seed(model_folder: Path, command: Command) -> None:
    first, again, other = (
        json.loads(command("verify", model_folder, "--seed", seed, "--json").out)["kernels"] for seed in (7, 7, 8)
    )
    assert first == again
    assert [kernel["worst_ulp"] for kernel in first] != [kernel["worst_ulp"] for kernel in other]
    assert all(kernel["verdict"] == "PASSED" and kernel["seed"] == 7 and kernel["cases"] > 0 for kernel in first)


def test_verify_judges_all_kernels_in_workers(model_folder: Path, command: Command) -> None:
    kernels = json.loads(command("explain", model_folder, "--json").out)["verified"]
    done = command("verify", model_folder)
    assert done.status == 0
    assert done.out.splitlines()[-1] == f"{kernels} of {kernels} kernels passed"


def test_verify_reports_what_fails(model_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("explain", model_folder)  # verdicts are stored now, so that only the command itself judges

    def judge_all(requests: Sequence[Request], done: Callable[[int, Verdict], None]) -> None:
        for index in range(len(requests)):
            reason = "CRASHED" if index == 0 else ""
            done(index, Verdict(reason, "the worker ended with status -11" if reason else "", 3, 0.4, 1.5, 1))

    monkeypatch.setattr("mlx_autoperfect.verify.pool.judge_all", judge_all)
    done = command("verify", model_folder)
    assert done.status == 1
    assert "CRASHED: the worker ended with status -11" in done.out
    total = len(json.loads(command("verify", model_folder, "--json").out)["kernels"])
    assert done.out.splitlines()[-1] == f"{total - 1} of {total} kernels passed"


def test_verify_of_a_kernel_that_no_longer_builds(
    model_folder: Path, command: Command, cpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_autoperfect.cli.verify import judge_again
    from mlx_autoperfect.errors import Failure, Reason, Stage

    class Broken:
        def build(self, sources: Sequence[object]) -> list[Failure]:
            return [Failure(Stage.BUILD, Reason.COMPILE_ERROR, "no room") for _ in sources]

    from mlx_autoperfect.api import analyze
    from mlx_autoperfect.cli.loading import load_lazily
    from mlx_autoperfect.cli.verify import rendered_kernels

    found: dict[int, Verdict] = {}
    requests = rendered_kernels(analyze(load_lazily(str(model_folder)))[0])
    judge_again(requests[:2], Broken(), 1, found.__setitem__)  # type: ignore[arg-type]
    assert [verdict.reason for verdict in found.values()] == ["COMPILE_ERROR"] * 2
