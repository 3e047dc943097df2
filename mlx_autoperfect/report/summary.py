"""An analysis boiled down to what is reported: plain data, ready for text, tables and JSON."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_autoperfect.errors import Failure
from mlx_autoperfect.fusion.cost import type_bytes
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.graph.ops import OpClass
from mlx_autoperfect.graph.types import WeightType
from mlx_autoperfect.pipeline import VARIANTS, Analysis, Captured, Job, Outcome, count_kernels
from mlx_autoperfect.runtime.dispatch import Forwards

ROWS = {"one": "1 row (decode)", "few": "2 to 16 rows", "many": "17 rows and more (prompt)"}
# What has no variant of its own for one row, such as a linear layer alone.
UNSPLIT_ROWS = {**ROWS, "few": "1 to 16 rows"}


@dataclass(frozen=True)
class RegionReport:
    """One region and its kernel.

    Attributes:
        name: says the fusion.
        signature: of what the region computes.
        anchor: the kernel's loop structure; empty where MLX runs the region.
        inputs: text of the type of each array that is read, weights included.
        weight_bytes: bytes of weights that are read.
        launches_saved: launches less than one per operation.
        bytes_saved: bytes of intermediate results no longer written and read; sizes that a call decides count
            as 128 rows and 1024 keys.
        verdict: ``PASSED``, a reason code, or ``STOCK`` where MLX runs the region.
        cases: how many cases were judged.
        worst_ulp: the kernel's largest error; ``None`` when it was not judged.
        stock_ulp: stock MLX's largest error on the same cases.
        stored: whether the verdict was reached by an earlier run.
        why: why there is no kernel; empty when there is one.
    """

    name: str
    signature: str
    anchor: str
    inputs: tuple[str, ...]
    weight_bytes: int
    launches_saved: int
    bytes_saved: int
    verdict: str
    cases: int
    worst_ulp: float | None
    stock_ulp: float | None
    stored: bool
    why: str


@dataclass(frozen=True)
class VariantReport:
    """A module at some number of rows.

    Attributes:
        rows: which calls this is about.
        regions: in the order in which they run.
        effects: what happens between kernels, with counts.
        not_fused: neighbouring regions that stay apart, each with its reason.
    """

    rows: str
    regions: tuple[RegionReport, ...]
    effects: tuple[str, ...]
    not_fused: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Modules that share one graph.

    Attributes:
        title: which modules, and how many.
        role: ``root``, ``block``, ``linear`` (a fallback, used where a block's own kernels are not) or ``other``.
        modules: how many.
        variants: by number of rows; empty when the module could not be captured.
    """

    title: str
    role: str
    modules: int
    variants: tuple[VariantReport, ...]


@dataclass(frozen=True)
class Report:
    """What was found out about a model.

    Attributes:
        sections: root, blocks, linear layers.
        failures: what could not be captured.
        dropped: kernels that failed at run time.
        verified, rejected: how many kernels the judge passed and refused.
        seconds: time per stage.
    """

    sections: tuple[Section, ...]
    failures: tuple[str, ...]
    dropped: tuple[str, ...]
    verified: int
    rejected: int
    seconds: Mapping[str, float]


def summarize(analysis: Analysis, forwards: Mapping[str, Forwards] | None = None) -> Report:
    """The report of an analysis; ``forwards`` tell which kernels failed since."""
    verified, rejected = count_kernels(analysis.outcomes.values())
    dropped = tuple(f"{path}: {error}" for path, each in (forwards or {}).items() for error in each.dropped)
    failures = tuple(map(str, analysis.failures))
    return Report(_sections(analysis), failures, dropped, verified, rejected, dict(analysis.seconds))


def span(paths: Sequence[str]) -> str:
    """``model.layers.0``, ``.1``, ``.2``, ``.5`` -> ``model.layers.0-2,5``; other names are listed."""
    split = [re.fullmatch(r"(.*\.)(\d+)", path) for path in paths]
    heads = {match[1] if match else None for match in split}
    if len(heads) != 1 or None in heads:
        return ", ".join(paths)
    runs: list[list[int]] = []
    for number in (int(match[2]) for match in split if match):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return f"{heads.pop()}{','.join('-'.join(map(str, run)) for run in runs)}"


def _sections(analysis: Analysis) -> tuple[Section, ...]:
    found = []
    if any(what == "root" for what, _ in analysis.graphs):
        found.append(Section("model: embedding, blocks, head", "root", 1, _variants(analysis, "root")))
    for what in dict.fromkeys(analysis.kind_of_block):
        pairs = zip(analysis.blocks, analysis.kind_of_block, strict=True)
        paths = [block.path for block, kind in pairs if kind == what]
        count = f"{len(paths)} blocks share one graph" if len(paths) > 1 else "1 block"
        found.append(Section(f"{span(paths)}: {count}", "block", len(paths), _variants(analysis, what)))
    for what in dict.fromkeys(what for _, _, what in analysis.leaves):
        paths = [path for path, _, kind in analysis.leaves if kind == what]
        names = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths))
        title = f"{len(paths)} linear layer{'s' * (len(paths) > 1)} ({names})"
        found.append(Section(title, "linear", len(paths), _variants(analysis, what)))
    listed = {"root", *analysis.kind_of_block, *(what for _, _, what in analysis.leaves)}
    others = {what: captured.name for (what, _), captured in analysis.graphs.items() if what not in listed}
    return (*found, *(Section(name, "other", 1, _variants(analysis, what)) for what, name in others.items()))


def _variants(analysis: Analysis, what: str) -> tuple[VariantReport, ...]:
    captured = [analysis.graphs.get((what, variant.name)) for variant in VARIANTS]
    rows = ROWS if (what, "one") in analysis.graphs else UNSPLIT_ROWS
    return tuple(_variant(analysis, item, rows[item.variant.name]) for item in captured if item is not None)


def _variant(analysis: Analysis, captured: Captured, rows: str) -> VariantReport:
    parts, many = captured.partition, captured.variant.many_rows
    region_of = {value: region for region in parts.regions for value in region.nodes}
    saved = {region.nodes: [0, 0] for region in parts.regions}
    for fusion in parts.fusions:
        entry = saved[region_of[_values(fusion.first)[0]].nodes]
        entry[0] += fusion.saving.launches
        entry[1] += fusion.saving.traffic
    regions = []
    for region in parts.regions:
        outcome = analysis.outcomes.get(Job(region, many).key)
        regions.append(_region(region, outcome, *saved[region.nodes]))
    counts = Counter(node.op.name for node in parts.graph.nodes if node.op.kind is OpClass.EFFECT)
    effects = tuple(f"{count} x {name}" for name, count in counts.items())
    refused = tuple(dict.fromkeys(_refused(failure, region_of) for failure in parts.refused))
    return VariantReport(rows, tuple(regions), effects, refused)


def _values(group: str) -> list[str]:
    """The values that a group's text names."""
    return [word.removeprefix("%") for word in group.split()]


def _refused(failure: Failure, region_of: Mapping[str, Region]) -> str:
    """A refused fusion with the names of the regions instead of their values."""
    names = [_name(region_of[_values(group)[0]]) for group in failure.where.split(" + ")]
    return f"{' + '.join(names)}: {failure.reason}: {failure.detail}"


def _region(region: Region, outcome: Outcome | None, launches: int, traffic: int) -> RegionReport:
    kernel = outcome.kernel if outcome else None
    verdict = outcome.verdict if outcome else None
    failure = outcome.failure if outcome else None
    types = [*(type_ for _, type_ in region.graph.inputs), *(p.type for p in region.graph.params)]
    proven = outcome is not None and outcome.proven is not None
    return RegionReport(
        name=_name(region),
        signature=region.signature,
        anchor=kernel.anchor.name if kernel else "",
        inputs=tuple(map(str, types)),
        weight_bytes=sum(type_bytes(type_) for type_ in types if isinstance(type_, WeightType)),
        launches_saved=launches,
        bytes_saved=traffic,
        verdict="PASSED" if proven else failure.reason if failure else "STOCK",
        cases=verdict.cases if verdict else 0,
        worst_ulp=verdict.worst if verdict else None,
        stock_ulp=verdict.stock if verdict else None,
        stored=outcome.stored if outcome else False,
        why="" if proven else failure.detail if failure else _why_stock(region),
    )


def _name(region: Region) -> str:
    """The region's name; a bare product of a layer that is captured alone has none."""
    return region.name or "linear"


def _why_stock(region: Region) -> str:
    if region.kind is not RegionKind.STOCK:
        return "no kernel was asked for"
    names = ", ".join(dict.fromkeys(node.op.name for node in region.graph.nodes))
    return f"no kernel computes {names}; MLX runs it"
