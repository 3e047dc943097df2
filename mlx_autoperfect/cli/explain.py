"""``mlx-autoperfect explain``: what becomes of a model, and why."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "explain",
        help="block -> region -> kernel of a model, and why the rest is not fused",
        description="Captures, fuses, builds and verifies the kernels of a model, and prints what became of each "
        "part. AUTOPERFECT_DEBUG=1 to 6 adds decisions, timings, graphs, KernelIR, sources and compiler output.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, a fetched model's name, or a hub repository")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0; 1 when the judge rejected a kernel.

    Raises:
        AutoperfectError: the model cannot be loaded, or no backend works here.
    """
    from mlx_autoperfect.api import analyze
    from mlx_autoperfect.cli.loading import load_lazily
    from mlx_autoperfect.cli.screen import output_console, pipeline_progress
    from mlx_autoperfect.report import debug_text, summarize
    from mlx_autoperfect.report.text import print_report
    from mlx_autoperfect.settings import Settings

    model = load_lazily(args.model)
    with pipeline_progress("explaining") as progress:
        analysis = analyze(model, progress=progress)[0]
    report = summarize(analysis)
    if args.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print_report(report, output_console())
    sys.stderr.write(debug_text(analysis, Settings.from_env().debug))
    return 1 if report.rejected else 0
