"""``mlx-autoperfect fetch``: brings a model and prints the path of its folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_autoperfect.errors import AutoperfectError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_INTERRUPTED = 130


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "fetch",
        help="bring a model: a known one, or a GGUF file",
        description="Writes a model folder for mlx-lm, with exactly the weights of the source, and prints its path.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("name", nargs="?", help="a known model, such as smollm2-135m")
    source.add_argument("--gguf", type=Path, metavar="FILE", help="convert this GGUF file")
    source.add_argument("--list", action="store_true", help="print the known models")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the folder to write; default: in the cache")
    parser.add_argument("--force", action="store_true", help="write again, even over another fetched model")
    parser.add_argument("--keep-gguf", action="store_true", help="also keep a known model's GGUF in the cache")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; progress goes to standard error, the folder's path to standard output.

    Returns:
        0; 1 for an error, told in one line; 130 when interrupted.
    """
    try:
        if args.list:
            _print_models()
        else:
            print(_fetch(args))
    except AutoperfectError as error:
        print(f"mlx-autoperfect fetch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mlx-autoperfect fetch: interrupted; nothing was left half-written", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _fetch(args: argparse.Namespace) -> Path:
    from mlx_autoperfect.fetch import Options, fetch_gguf, fetch_known

    options = Options(output=args.output, force=args.force, keep_gguf=args.keep_gguf)
    return fetch_known(args.name, options) if args.gguf is None else fetch_gguf(args.gguf, options)


def _print_models() -> None:
    from rich.console import Console
    from rich.table import Table

    from mlx_autoperfect.fetch.known import KNOWN_MODELS

    table = Table("name", "model", "download", "licence", "from", box=None)
    for model in KNOWN_MODELS.values():
        table.add_row(model.name, model.title, f"{model.wheel_bytes / 1e6:.0f} MB", model.licence, model.requirement)
    Console().print(table)
