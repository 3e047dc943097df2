"""Golden texts of one model on its way through the program: tiny llama, 4-bit weights, float16, one row at a time.

Run pytest with ``--update-golden`` after a change that is meant, and review what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.fusion.partition import Partition
from mlx_autoperfect.graph.text import print_graph
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect.kernel.text import print_kernel
from mlx_autoperfect_cpu.render import render
from tests.models import REGIMES, Spec, build, canonical, capture, partitions

Golden = Callable[[str, str], None]
SPEC = Spec("llama", "float16", (4, 32))


@pytest.fixture(scope="module")
def decode() -> dict[str, Partition]:
    return partitions(build(SPEC), REGIMES["decode"])


def _kernels(parts: dict[str, Partition], many_rows: bool = False) -> list[Kernel]:
    found = [lower(region, many_rows=many_rows) for p in parts.values() for region in p.regions]
    return [kernel for kernel in found if isinstance(kernel, Kernel)]


def _sources(parts: dict[str, Partition], many_rows: bool = False) -> list[Source]:
    found = [render(kernel) for kernel in _kernels(parts, many_rows)]
    assert all(isinstance(source, Source) for source in found)
    return [source for source in found if isinstance(source, Source)]


def _joined(parts: list[tuple[str, str]]) -> str:
    return "\n".join(f"=== {name}\n{text}" for name, text in parts)


def test_graph(golden: Golden) -> None:
    program = capture(build(SPEC), REGIMES["decode"])
    graphs = [
        ("root", program.root), ("block, as captured", program.blocks[0]),
        ("block, canonical", canonical(program.blocks[0])),
    ]  # fmt: skip
    golden("graph", _joined([(name, print_graph(graph)) for name, graph in graphs]))


def test_regions(decode: dict[str, Partition], golden: Golden) -> None:
    parts: list[tuple[str, str]] = []
    for what, cut in decode.items():
        for region in cut.regions:
            head = f"{what}: {region.name} ({region.kind}) {region.signature}"
            parts.append(
                (head, f"{', '.join(region.inputs)} -> {', '.join(region.outputs)}\n{print_graph(region.graph)}")
            )
        fused = [f"{f.first} + {f.second} ({f.saving.launches}, {f.saving.traffic})" for f in cut.fusions]
        parts.append((f"{what}: fused", "\n".join(fused) + "\n"))
        parts.append((f"{what}: refused", "\n".join(map(str, cut.refused)) + "\n"))
    golden("regions", _joined(parts))


def test_kernels(decode: dict[str, Partition], golden: Golden) -> None:
    golden("kernels", "\n".join(map(print_kernel, _kernels(decode))))


def test_sources(decode: dict[str, Partition], golden: Golden) -> None:
    golden("sources", _joined([(source.kernel.name, source.text) for source in _sources(decode)]))


def test_sources_of_many_rows(golden: Golden) -> None:
    parts = partitions(build(SPEC), REGIMES["prefill"])
    golden("sources_prefill", _joined([(source.kernel.name, source.text) for source in _sources(parts, True)]))
