"""Reports: what they say about an analysis, in every form."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from mlx_autoperfect.api import analyze
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.pipeline import Analysis, Outcome
from mlx_autoperfect.report import debug_text, explain_text, summarize
from mlx_autoperfect.report.summary import Report, span
from mlx_autoperfect.report.text import bytes_text, print_report
from mlx_autoperfect.runtime.dispatch import Forwards
from mlx_autoperfect.settings import Settings
from mlx_autoperfect_cpu.build import BuildFailure
from tests.models import Spec, build

EXPECTED = {"rms_qkv", "rope", "attention", "o_residual", "rms_gate_up_swiglu", "down_residual"}


def block(report: Report) -> list[str]:
    """Names of the regions of the first group of blocks, for one row."""
    section = next(section for section in report.sections if section.role == "block")
    return [region.name for region in section.variants[0].regions]


def with_outcome(analysis: Analysis, region: str, **changes: object) -> Analysis:
    """A copy in which the kernels of one region came out differently."""
    jobs = analysis.jobs()
    outcomes = {
        key: replace(outcome, **changes) if jobs[key].region.name == region else outcome  # type: ignore[arg-type]
        for key, outcome in analysis.outcomes.items()
    }
    return replace(analysis, outcomes=outcomes)


def test_blocks_of_one_graph_are_one_section(analysis: Analysis) -> None:
    text = explain_text(analysis)
    assert "model.layers.0-1: 2 blocks share one graph" in text
    assert text.startswith("2 blocks, 14 linear layers: ")
    assert set(block(summarize(analysis))) == EXPECTED


def test_what_was_verified(analysis: Analysis) -> None:
    report = summarize(analysis)
    assert report.rejected == 0
    assert report.verified == sum(1 for o in analysis.outcomes.values() if o.proven is not None) > 0
    judged = [region for s in report.sections for v in s.variants for region in v.regions if region.verdict == "PASSED"]
    assert all(region.cases > 0 and region.worst_ulp is not None and not region.why for region in judged)
    assert {region.anchor for region in judged} == {"matvec", "matmul", "rowmap", "attention"}


def test_savings_are_what_the_fusions_sum_to(analysis: Analysis) -> None:
    variants = [v for s in summarize(analysis).sections for v in s.variants]
    fusions = [fusion for captured in analysis.graphs.values() for fusion in captured.partition.fusions]
    assert sum(r.launches_saved for v in variants for r in v.regions) == sum(f.saving.launches for f in fusions) > 0
    assert sum(r.bytes_saved for v in variants for r in v.regions) == sum(f.saving.traffic for f in fusions) > 0


def test_refused_fusions_name_regions(analysis: Analysis) -> None:
    section = next(s for s in summarize(analysis).sections if s.role == "block")
    refused = section.variants[0].not_fused
    assert "attention + o_residual: ANCHOR_CONFLICT" in " ".join(refused)
    for line in refused:
        names, reason, _ = line.split(": ", 2)
        assert set(names.split(" + ")) <= EXPECTED
        assert reason in Reason.__members__


def test_what_mlx_runs_says_why(analysis: Analysis) -> None:
    root = next(s for s in summarize(analysis).sections if s.role == "root")
    embedding = next(region for region in root.variants[0].regions if region.name == "embedding")
    assert embedding.verdict == "STOCK"
    assert "embedding" in embedding.why
    assert f"embedding: {embedding.why}" in explain_text(analysis)


def test_a_rejected_kernel(analysis: Analysis) -> None:
    before = next(o for o in analysis.outcomes.values() if o.verdict is not None).verdict
    assert before is not None
    verdict = replace(before, reason="NUMERIC_MISMATCH", detail="error 90 ulp, allowed 3", name="rope")
    changed = with_outcome(analysis, "rope", verdict=verdict, failure=verdict.failure, proven=None)
    report = summarize(changed)
    assert report.rejected > 0
    assert report.verified + report.rejected == summarize(analysis).verified
    assert "rope: error 90 ulp, allowed 3" in explain_text(changed)
    assert f"{report.rejected} rejected" in explain_text(changed).splitlines()[0]
    assert "NUMERIC_MISMATCH" in debug_text(changed, 1)


def test_a_kernel_that_does_not_compile(analysis: Analysis) -> None:
    failure = BuildFailure(Stage.BUILD, Reason.COMPILE_ERROR, "kernel.cpp:3: error: oops", "rope", log="line 1\nline 2")
    changed = with_outcome(analysis, "rope", verdict=None, failure=failure, proven=None)
    assert "rope: kernel.cpp:3: error: oops" in explain_text(changed)
    assert "line 1\nline 2" not in debug_text(changed, 5)
    assert "line 1\nline 2" in debug_text(changed, 6)


def test_what_could_not_be_captured_and_what_failed_since(analysis: Analysis) -> None:
    failure = Failure(Stage.CAPTURE, Reason.UNSUPPORTED_CACHE, "its cache is a RotatingKVCache", "model.layers.0")
    forwards = {"model": Forwards("model", dropped=["no memory"])}
    lines = explain_text(replace(analysis, failures=[failure]), forwards).splitlines()
    assert "not captured: model.layers.0: UNSUPPORTED_CACHE: its cache is a RotatingKVCache" in lines
    assert "dropped at run time: model: no memory" in lines


def test_blocks_that_were_not_captured_have_a_section(analysis: Analysis) -> None:
    kinds = set(analysis.kind_of_block)
    without = {key: captured for key, captured in analysis.graphs.items() if key[0] not in kinds}
    lines = explain_text(replace(analysis, graphs=without)).splitlines()
    assert lines[lines.index("model.layers.0-1: 2 blocks share one graph") + 1] == "  runs as mlx-lm wrote it"


def test_without_fuel_nothing_is_fused(cpu: Backend, kernel_cache: Path) -> None:
    unfused = analyze(build(Spec()), Settings(cache_dir=kernel_cache, fuel=0))[0]
    report = summarize(unfused)
    assert all(r.launches_saved == 0 for s in report.sections for v in s.variants for r in v.regions)
    assert len(block(report)) > len(EXPECTED)
    assert "OUT_OF_FUEL" in explain_text(unfused)


def test_an_empty_analysis() -> None:
    assert explain_text(Analysis()).startswith("0 blocks, 0 linear layers: 0 kernels verified, 0 rejected\n")
    assert debug_text(Analysis(), 6) == ""


def test_json_holds_everything(analysis: Analysis) -> None:
    report = summarize(analysis)
    data = json.loads(json.dumps(asdict(report)))
    assert data["verified"] == report.verified
    assert [s["title"] for s in data["sections"]] == [s.title for s in report.sections]
    assert data["seconds"].keys() == analysis.seconds.keys()


def test_the_ladder_only_adds(analysis: Analysis) -> None:
    texts = [debug_text(analysis, level) for level in range(7)]
    assert texts[0] == ""
    for lower, higher in pairwise(texts[:6]):
        assert higher.startswith(lower) and len(higher) > len(lower)
    marks = ("PASSED", "timing ", "graph model.layers.0", "\nkernel rms_qkv", "// rms_qkv for cpu")
    for level, mark in enumerate(marks, 1):
        assert mark in texts[level] and mark not in texts[level - 1]


@pytest.mark.parametrize(("width", "reads"), [(100, False), (200, True)])
def test_tables_on_a_terminal(analysis: Analysis, width: int, reads: bool) -> None:
    screen = io.StringIO()
    print_report(summarize(analysis), Console(file=screen, force_terminal=True, width=width, highlight=False))
    shown = screen.getvalue()
    assert all(name in shown for name in EXPECTED)
    assert ("q4g32" in shown) is reads


def test_text_where_there_is_no_terminal(analysis: Analysis) -> None:
    screen = io.StringIO()
    print_report(summarize(analysis), Console(file=screen, width=20))
    assert screen.getvalue() == explain_text(analysis)


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["a.0"], "a.0"),
        (["a.0", "a.1", "a.2"], "a.0-2"),
        (["a.0", "a.1", "a.2", "a.5", "a.7", "a.8"], "a.0-2,5,7-8"),
        (["a.0", "b.1"], "a.0, b.1"),
        (["a.0", "norm"], "a.0, norm"),
        (["norm"], "norm"),
    ],
)
def test_spans(paths: list[str], text: str) -> None:
    assert span(paths) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (2304, "2.3 kB"), (31_850_000, "31.9 MB"), (25_276_510_208, "25.3 GB")],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_an_outcome_without_a_verdict_is_no_success(analysis: Analysis) -> None:
    changed = replace(analysis, outcomes=dict.fromkeys(analysis.outcomes, Outcome()))
    assert "PASSED" not in explain_text(changed)
