"""``mlx-autoperfect verify``: the judge again, on every kernel of a model."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mlx_autoperfect.hookspecs import Backend
    from mlx_autoperfect.pipeline import Analysis, Progress
    from mlx_autoperfect.verify.judge import Verdict


@dataclass(frozen=True)
class Judged:
    """A kernel and what the judge says about it now; ``problem`` is why it could not be built."""

    region: str
    anchor: str
    verdict: Verdict | None
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.passed


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "verify",
        help="judge every kernel of a model again, whatever was found before",
        description="Judges each kernel of a model against the float64 reference, on fresh cases. Verdicts of "
        "earlier runs are neither used nor changed.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, a fetched model's name, or a hub repository")
    parser.add_argument("--seed", type=int, metavar="N", help="draw the cases from this seed; default: a fresh one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def judge_all(analysis: Analysis, backend: Backend, seed: int, progress: Progress) -> Iterator[Judged]:
    """Judges every kernel that was rendered, also those that a stored verdict keeps from being used."""
    from mlx_autoperfect.errors import Failure
    from mlx_autoperfect.verify.judge import verify

    jobs = analysis.jobs()
    rendered = [(jobs[key].region, o.kernel, o.source) for key, o in analysis.outcomes.items() if o.source and o.kernel]
    built = backend.build([source for _, _, source in rendered])
    for done, ((region, kernel, _), executable) in enumerate(zip(rendered, built, strict=True)):
        progress("verify", done, len(rendered))
        name = region.name or "linear"
        if isinstance(executable, Failure):
            yield Judged(name, kernel.anchor.name, None, str(executable))
        else:
            yield Judged(name, kernel.anchor.name, verify(region, kernel, executable, backend, seed))


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0 when every kernel passed; 1 otherwise.

    Raises:
        AutoperfectError: the model cannot be loaded, or no backend works here.
    """
    from mlx_autoperfect.api import analyze
    from mlx_autoperfect.cli.loading import load_lazily, pipeline_progress

    seed = secrets.randbits(32) if args.seed is None else args.seed
    model = load_lazily(args.model)
    with pipeline_progress("verifying") as progress:
        analysis, backend, _ = analyze(model, progress=progress)
        judged = list(judge_all(analysis, backend, seed, progress))
    failed = [item for item in judged if not item.passed]
    if args.json:
        _print_json(judged, seed)
    else:
        _print_table(judged)
        print(f"{len(judged) - len(failed)} of {len(judged)} kernels passed; cases from --seed {seed}")
    return 1 if failed else 0


def _verdict(item: Judged) -> str:
    if item.verdict is None:
        return item.problem
    return "PASSED" if item.verdict.passed else f"{item.verdict.reason}: {item.verdict.detail}"


def _print_json(judged: list[Judged], seed: int) -> None:
    kernels = [
        {
            "region": item.region,
            "anchor": item.anchor,
            "passed": item.passed,
            "cases": item.verdict.cases if item.verdict else 0,
            "worst_ulp": item.verdict.worst if item.verdict else None,
            "stock_ulp": item.verdict.stock if item.verdict else None,
            "verdict": _verdict(item),
        }
        for item in judged
    ]
    print(json.dumps({"seed": seed, "kernels": kernels}, indent=2))


def _print_table(judged: list[Judged]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("region", "anchor", "cases", "worst ulp", "stock ulp", "verdict", box=None)
    for item in judged:
        figures = ("", "", "")
        if item.verdict is not None:
            figures = (str(item.verdict.cases), f"{item.verdict.worst:.3g}", f"{item.verdict.stock:.3g}")
        table.add_row(item.region, item.anchor, *figures, Text(_verdict(item), "green" if item.passed else "red"))
    Console(highlight=False).print(table)
