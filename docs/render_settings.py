"""Writes ``docs/settings.md`` from the table in ``mlx_autoperfect/settings.py``; ``--check`` only compares."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlx_autoperfect.settings import TABLE, Settings

TARGET = Path(__file__).with_name("settings.md")

_HEAD = """\
# Settings

Every setting is an environment variable. This page is generated from `mlx_autoperfect/settings.py` (`make docs`).
A value that cannot be read is an error of one line that names the variable; inside mlx-lm's commands that line is
printed and stock mlx-lm runs.

| variable | default | meaning |
|---|---|---|
"""
_TAIL = """
`mlx-autoperfect doctor` prints the values in force. From Python, pass
`mlx_autoperfect.optimize(model, settings=Settings(...))` instead.

What switches it off wins: `--no-autoperfect`, then `AUTOPERFECT=0`; after these the flag, the launcher and
`AUTOPERFECT=1` each switch it on (see [start-up.md](start-up.md)).

The C++ compiler is the one in `CXX` when that is set, else the first of `g++`, `clang++` and `c++` that works.
"""
# Defaults that depend on the machine, in words.
_DEFAULTS = {"cache_dir": "the user's cache folder, `mlx-autoperfect` in it", "threads": "one per usable core"}


def _default(field: str) -> str:
    if field in _DEFAULTS:
        return _DEFAULTS[field]
    value = getattr(Settings(), field)
    return "unset" if value in (None, "") else f"`{value}`"


def render() -> str:
    """The page."""
    rows = [f"| `{v.name}` | {_default(v.field)} | {v.help} |\n" for v in TABLE]
    return _HEAD + "".join(rows) + _TAIL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when the page is out of date")
    if not parser.parse_args().check:
        TARGET.write_text(render())
    elif TARGET.read_text() != render():
        print(f"{TARGET.name} is out of date: run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
