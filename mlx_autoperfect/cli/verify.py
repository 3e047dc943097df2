"""``mlx-autoperfect verify``: the judge again, on every kernel of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mlx_autoperfect.hookspecs import Backend
    from mlx_autoperfect.pipeline import Analysis
    from mlx_autoperfect.verify.judge import Verdict
    from mlx_autoperfect.verify.request import Request

    Done = Callable[[int, Verdict], None]


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "verify",
        help="judge every kernel of a model again, whatever was found before",
        description="Judges each kernel of a model against the float64 reference, on fresh cases. Verdicts of "
        "earlier runs are neither used nor changed.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, a fetched model's name, or a hub repository")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="replay the cases of this seed, unguarded, in this process"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0 when every kernel passed; 1 otherwise.

    Raises:
        AutoperfectError: the model cannot be loaded, or no backend works here.
    """
    from mlx_autoperfect.api import analyze
    from mlx_autoperfect.cli.loading import load_lazily
    from mlx_autoperfect.cli.screen import pipeline_progress

    model = load_lazily(args.model)
    with pipeline_progress("verifying") as progress:
        analysis, backend, _ = analyze(model, progress=progress)
        requests = rendered_kernels(analysis)
        verdicts: dict[int, Verdict] = {}

        def done(index: int, verdict: Verdict) -> None:
            verdicts[index] = verdict
            progress("judging again", len(verdicts), len(requests))

        judge_again(requests, backend, args.seed, done)
    judged = [(request, verdicts[index]) for index, request in enumerate(requests)]
    (_print_json if args.json else _print_table)(judged)
    return 0 if all(verdict.passed for _, verdict in judged) else 1


def rendered_kernels(analysis: Analysis) -> list[Request]:
    """Every kernel with a source, also those that a stored verdict keeps from being used."""
    from mlx_autoperfect.verify.request import Request

    jobs = analysis.jobs()
    pairs = [(jobs[key].region, outcome) for key, outcome in analysis.outcomes.items()]
    return [Request(region, o.kernel, o.source) for region, o in pairs if o.kernel and o.source]


def judge_again(requests: Sequence[Request], backend: Backend, seed: int | None, done: Done) -> None:
    """Judges in guarded processes, as before a kernel's first use; with a seed in this process, to replay cases."""
    from mlx_autoperfect.errors import Failure
    from mlx_autoperfect.verify.judge import Verdict, verify
    from mlx_autoperfect.verify.pool import judge_all

    if seed is None:
        judge_all(requests, done)
        return
    built = backend.build([request.source for request in requests])
    for index, (request, executable) in enumerate(zip(requests, built, strict=True)):
        if isinstance(executable, Failure):
            verdict = Verdict(executable.reason.value, executable.detail, 0, 0.0, 0.0, seed, request.kernel.name)
        else:
            verdict = verify(request.region, request.kernel, executable, backend, seed)
        done(index, verdict)


def _print_json(judged: Sequence[tuple[Request, Verdict]]) -> None:
    kernels = [
        {
            "region": request.region.name,
            "signature": request.region.signature,
            "anchor": request.kernel.anchor.name,
            "verdict": verdict.reason or "PASSED",
            "detail": verdict.detail,
            "cases": verdict.cases,
            "worst_ulp": verdict.worst,
            "stock_ulp": verdict.stock,
            "seed": verdict.seed,
        }
        for request, verdict in judged
    ]
    print(json.dumps({"kernels": kernels}, indent=2))


def _print_table(judged: Sequence[tuple[Request, Verdict]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from mlx_autoperfect.cli.screen import output_console

    table = Table("region", "anchor", "cases", "worst ulp", "stock ulp", "seed", "verdict", box=None)
    for request, verdict in judged:
        text = Text("PASSED", "green") if verdict.passed else Text(f"{verdict.reason}: {verdict.detail}", "red")
        figures = (str(verdict.cases), f"{verdict.worst:.3g}", f"{verdict.stock:.3g}", str(verdict.seed))
        table.add_row(request.region.name or "linear", request.kernel.anchor.name, *figures, text)
    output_console().print(table)
    passed = sum(verdict.passed for _, verdict in judged)
    print(f"{passed} of {len(judged)} kernels passed")
