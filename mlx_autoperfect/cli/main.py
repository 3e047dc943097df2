"""The ``mlx-autoperfect`` command line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from mlx_autoperfect import __version__
from mlx_autoperfect.errors import AutoperfectError
from mlx_autoperfect.settings import Settings

COMMANDS = {
    "doctor": "what this machine is, and whether kernels can be made here",
    "explain": "block -> region -> kernel of a model, and why the rest is not fused",
    "verify": "judge every kernel of a model again, whatever was found before",
    "fetch": "bring a model: a known one, or a GGUF file",
    "run": "start a program with autoperfect on, without any start-up hook",
    "demo": "the same prompt with stock mlx-lm and with autoperfect, side by side",
    "cache": "where compiled kernels, verdicts and fetched models are; clear them",
}
"""Each is a module of this package; ``run`` takes its words as they are, the others define a parser."""

INTERRUPTED = 130
MISUSE = 2


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; only ``command``'s module is imported, the other commands are there for the help."""
    parser = argparse.ArgumentParser(
        prog="mlx-autoperfect",
        description="Makes mlx-lm models faster on this machine, without changing what they answer.",
    )
    parser.add_argument("--version", action="version", version=f"mlx-autoperfect {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, help_text in COMMANDS.items():
        if name == command and name != "run":
            import_module(f"mlx_autoperfect.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=help_text)
    return parser


def start_logging(debug: int) -> None:
    """Sends our log to standard error, one line per record: warnings, and with ``debug`` also information."""
    logger = logging.getLogger("mlx_autoperfect")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if debug else logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The command's own status; 2 for an error of the user's, told in one line; 130 when interrupted.

    Raises:
        SystemExit: argparse's own, and that of a program started with ``run``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        start_logging(Settings.from_env().debug)
        if words[:1] == ["run"]:
            from mlx_autoperfect.cli.run import run

            return run(words[1:])
        args = make_parser(command).parse_args(words)
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except AutoperfectError as error:
        print(f"mlx-autoperfect {command or ''}".rstrip() + f": {error}", file=sys.stderr)
        return MISUSE
    except KeyboardInterrupt:
        print("mlx-autoperfect: interrupted; nothing was left half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # What read our output is gone (``| head``); Python must not try to flush the rest.
        sys.stdout = None
        return 0


if __name__ == "__main__":
    sys.exit(main())
