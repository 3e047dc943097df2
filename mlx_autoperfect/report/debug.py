"""The debug ladder ``AUTOPERFECT_DEBUG``: each level adds to the ones below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlx_autoperfect.graph.text import print_graph
from mlx_autoperfect.kernel.text import print_kernel
from mlx_autoperfect.pipeline import Analysis, Outcome


def debug_text(analysis: Analysis, level: int) -> str:
    """What level ``level`` (0 to 6) says about an analysis; empty at 0."""
    return "".join(f"{line}\n" for rung in LADDER[:level] for line in rung(analysis))


def _decisions(analysis: Analysis) -> Iterator[str]:
    jobs = analysis.jobs()
    for key, outcome in analysis.outcomes.items():
        yield f"decision {key} {jobs[key].region.name}: {_decision(outcome)}"
    for failure in analysis.failures:
        yield f"decision {failure}"


def _decision(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return f"{outcome.failure.stage}: {outcome.failure}"
    verdict = outcome.verdict
    if verdict is None:
        return "not judged"
    origin = "stored" if outcome.stored else f"seed {verdict.seed}"
    return f"PASSED {verdict.cases} cases, error {verdict.worst:.3g} ulp, stock's {verdict.stock:.3g} ({origin})"


def _timings(analysis: Analysis) -> Iterator[str]:
    for stage, seconds in analysis.seconds.items():
        yield f"timing {stage}: {seconds * 1e3:.1f} ms"


def _graphs(analysis: Analysis) -> Iterator[str]:
    seen = set()
    for captured in analysis.graphs.values():
        graph = captured.partition.graph
        if graph.content_hash not in seen:
            seen.add(graph.content_hash)
            rules = ", ".join(f"{step.rule}({step.value})" for step in captured.applied)
            yield f"# {captured.name}, {captured.variant.regime.name}; rewritten: {rules or 'nothing'}"
            yield print_graph(graph).rstrip()


def _kernels(analysis: Analysis) -> Iterator[str]:
    for outcome in analysis.outcomes.values():
        if outcome.kernel is not None:
            yield print_kernel(outcome.kernel).rstrip()


def _sources(analysis: Analysis) -> Iterator[str]:
    for outcome in analysis.outcomes.values():
        if outcome.source is not None:
            yield f"// {outcome.source.kernel.name} for {outcome.source.backend}\n{outcome.source.text.rstrip()}"


def _compiler_output(analysis: Analysis) -> Iterator[str]:
    for outcome in analysis.outcomes.values():
        log = getattr(outcome.failure, "log", "")
        if log:
            yield f"compiler output {outcome.failure}\n{log.rstrip()}"


LADDER: tuple[Callable[[Analysis], Iterator[str]], ...] = (
    _decisions,
    _timings,
    _graphs,
    _kernels,
    _sources,
    _compiler_output,
)
