"""A report as plain text and as tables for a terminal, from the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlx_autoperfect.pipeline import Analysis
from mlx_autoperfect.report.summary import RegionReport, Report, Section, VariantReport, summarize
from mlx_autoperfect.runtime.dispatch import Forwards

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = ("region", "anchor", "weights", "saves per call", "verdict", "cases", "error, ulp", "stock's", "reads")
_VERDICT = COLUMNS.index("verdict")
_NEVER_WRAPPED = 3
_WIDE = 150
_NOTES = (
    "ulp: units in the last place of a row's largest value, against float64.",
    "saves: bytes of intermediate results; a size that only a call decides counts as 128 rows or 1024 keys.",
    "Linear layers alone are the fallback for calls that a block's own kernels do not cover (batches, other caches).",
)


def explain_text(analysis: Analysis, forwards: Mapping[str, Forwards] | None = None) -> str:
    """Block -> region -> kernel, the judge's verdicts, and why the rest is not fused, as plain text."""
    return report_text(summarize(analysis, forwards))


def report_text(report: Report) -> str:
    """A report as plain text."""
    lines = [headline(report), ""]
    for section in report.sections:
        lines += [section.title, *_body(section), ""]
    return "\n".join([*lines, *endnotes(report)]) + "\n"


def print_report(report: Report, console: Console) -> None:
    """The same with tables on a terminal, where the last column needs a wide one; elsewhere as plain text."""
    if not console.is_terminal:
        console.print(report_text(report), end="", markup=False, soft_wrap=True)
        return
    shown = len(COLUMNS) if console.width >= _WIDE else len(COLUMNS) - 1
    console.print(headline(report), style="bold", markup=False)
    for section in report.sections:
        console.print(f"\n{section.title}", style="bold cyan", markup=False)
        for variant, notes in _variants(section):
            console.print(_table(variant, shown))
            for note in notes:
                console.print(f"  {note}", style="dim", markup=False)
    console.print()
    for line in endnotes(report):
        console.print(line, markup=False)


def _table(variant: VariantReport, shown: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=variant.rows, title_justify="left", title_style="italic", box=None)
    for index, column in enumerate(COLUMNS[:shown]):
        table.add_column(column, no_wrap=index < _NEVER_WRAPPED)
    for region in variant.regions:
        cells = [Text(cell) for cell in cells_of(region)[:shown]]
        cells[_VERDICT].stylize("green" if region.verdict == "PASSED" else "yellow")
        table.add_row(*cells)
    return table


def headline(report: Report) -> str:
    """One line: how much was found and how long it took."""
    blocks = sum(section.modules for section in report.sections if section.role == "block")
    linear = sum(section.modules for section in report.sections if section.role == "linear")
    spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.seconds.items())
    kernels = f"{report.verified} kernels verified, {report.rejected} rejected"
    return f"{blocks} blocks, {linear} linear layers: {kernels}" + (f" ({spent})" if spent else "")


def endnotes(report: Report) -> list[str]:
    """What could not be captured, what failed at run time, and what the columns mean."""
    lines = [f"not captured: {failure}" for failure in report.failures]
    lines += [f"dropped at run time: {error}" for error in report.dropped]
    return [*lines, *_NOTES]


def cells_of(region: RegionReport) -> tuple[str, ...]:
    """One row of the table."""
    launches = f"{region.launches_saved} launch{'es' * (region.launches_saved > 1)}"
    reads = (f"{count} x {type_}" if count > 1 else type_ for type_, count in Counter(region.inputs).items())
    cases = f"{region.cases}{', stored' * region.stored}" if region.cases else ""
    return (
        region.name,
        region.anchor or "-",
        bytes_text(region.weight_bytes) if region.weight_bytes else "",
        f"{launches}, {bytes_text(region.bytes_saved)}" if region.launches_saved else "",
        region.verdict,
        cases,
        "" if region.worst_ulp is None else f"{region.worst_ulp:.3g}",
        "" if region.stock_ulp is None else f"{region.stock_ulp:.3g}",
        " ".join(reads),
    )


def bytes_text(count: float) -> str:
    """``1234567`` -> ``1.2 MB`` (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def table_text(rows: Sequence[Sequence[str]], indent: str) -> list[str]:
    """Rows of cells as aligned lines; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _body(section: Section) -> list[str]:
    lines: list[str] = []
    for variant, notes in _variants(section):
        lines.append(f"  {variant.rows}")
        lines += table_text([COLUMNS, *map(cells_of, variant.regions)], "    ")
        lines += [f"    {note}" for note in notes]
    return lines or ["  runs as mlx-lm wrote it"]


def _variants(section: Section) -> list[tuple[VariantReport, list[str]]]:
    """Each variant with its notes; refusals that are the same as before are not repeated."""
    found = []
    before: tuple[str, ...] = ()
    for variant in section.variants:
        notes = [f"between kernels: {effect}" for effect in variant.effects]
        notes += [f"{region.name}: {region.why}" for region in variant.regions if region.why]
        if variant.not_fused and variant.not_fused == before:
            notes.append("not fused: as above")
        else:
            notes += [f"not fused: {line}" for line in variant.not_fused]
        before = variant.not_fused
        found.append((variant, notes))
    return found
