"""Fills the results of README.md from the records in ``benchmarks/results``; ``--check`` only compares.

A record is a JSON object. What it wants shown is under ``tables``, a list of objects with

* ``title``: one line;
* ``columns``: the headings, the first of which is usually empty;
* ``rows``: lists of as many cells, texts or numbers (printed with three digits);
* ``note``: optional, one paragraph: the machine, versions, how it was measured.

Records without ``tables`` are skipped. Files are taken in the order of their names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
RESULTS = PROJECT / "benchmarks" / "results"
BEGIN, END = "<!-- results: written by benchmarks/render_tables.py -->", "<!-- end of results -->"
_NONE = "No results have been recorded yet.\n"


class RecordError(Exception):
    """A record that cannot be shown; says which and why."""


def cell_text(value: Any) -> str:
    """Texts as they are; numbers with three digits, and thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table_text(table: Mapping[str, Any]) -> str:
    """One table in Markdown.

    Raises:
        ValueError: a part is missing, or a row has another number of cells than there are columns.
    """
    try:
        title, columns, rows = table["title"], table["columns"], table["rows"]
    except KeyError as error:
        raise ValueError(f"a table lacks {error}") from None
    uneven = next((row for row in rows if len(row) != len(columns)), None)
    if uneven is not None:
        raise ValueError(f"{title!r}: a row has {len(uneven)} cells for {len(columns)} columns")
    align = ["---"] + ["---:"] * (len(columns) - 1)
    lines = [list(map(str, columns)), align, *(list(map(cell_text, row)) for row in rows)]
    note = f"\n{table['note']}\n" if table.get("note") else ""
    return f"**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + note


def results_text(records: Iterable[Path]) -> str:
    """The tables of all records.

    Raises:
        RecordError: a record is no JSON object, or a table in it is malformed.
    """
    tables: list[str] = []
    for path in records:
        try:
            tables += map(table_text, json.loads(path.read_text()).get("tables", ()))
        except (ValueError, AttributeError) as error:
            raise RecordError(f"{path.name}: {error}") from None
    return "\n".join(tables) or _NONE


def filled(page: str, results: str) -> str:
    """``page`` with ``results`` between the markers.

    Raises:
        RecordError: a marker is missing.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise RecordError(f"the page lacks the marker {END if begin else BEGIN!r}")
    return f"{head}{BEGIN}\n{results}{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when the page is out of date")
    check = parser.parse_args().check
    page = README.read_text()
    try:
        wanted = filled(page, results_text(sorted(RESULTS.glob("*.json"))))
    except RecordError as error:
        print(f"render_tables: {error}", file=sys.stderr)
        return 2
    if check and wanted != page:
        print("README.md is out of date: run `make docs`", file=sys.stderr)
        return 1
    if not check:
        README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
