"""``mlx-autoperfect cache``: where things are kept, and a way to clear them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_autoperfect.errors import AutoperfectError
from mlx_autoperfect.settings import Settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

REBUILT = ("cpu", "verdicts", "locks")
"""What the next start makes again."""
FETCHED = ("models", "gguf", "bench")
"""What was downloaded or takes long to make."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "cache",
        help="where compiled kernels, verdicts and fetched models are; clear them",
        description="Shows or clears the cache folder, which AUTOPERFECT_CACHE_DIR sets.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("path", help="print the folder").set_defaults(run=print_path)
    clear = actions.add_parser("clear", help="remove compiled kernels and verdicts; they are made again when needed")
    clear.add_argument("--models", action="store_true", help="also remove fetched models and benchmark programs")
    clear.set_defaults(run=clear_cache)


def folder_size(folder: Path) -> int:
    """Bytes of all files below ``folder``; 0 when there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def print_path(_: argparse.Namespace) -> int:
    """Prints the cache folder."""
    print(Settings.from_env().cache_dir)
    return 0


def clear_cache(args: argparse.Namespace) -> int:
    """Removes what this project put into the cache folder, and nothing else.

    Raises:
        AutoperfectError: a folder cannot be removed.
    """
    root = Settings.from_env().cache_dir
    freed = 0
    for name in (*REBUILT, *(FETCHED if args.models else ())):
        folder = root / name
        if not folder.is_dir():
            continue
        freed += folder_size(folder)
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise AutoperfectError(
                f"cannot remove {error.filename}: {error.strerror}; remove {folder} by hand"
            ) from None
    print(f"removed {freed / 1e6:.1f} MB from {root}")
    return 0
