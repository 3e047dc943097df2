"""What crosses the line between the user's process and the worker: text only."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.graph.text import parse_graph, print_graph
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.kernel.text import parse_kernel, print_kernel


@dataclass(frozen=True)
class Request:
    """A kernel to be judged: the region it must compute, the kernel, and its source."""

    region: Region
    kernel: Kernel
    source: Source

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "name": self.kernel.name,
                "kind": self.region.kind.value,
                "graph": print_graph(self.region.graph, comments=False),
                "kernel": print_kernel(self.kernel),
                "backend": self.source.backend,
                "source": self.source.text,
            }
        )

    @classmethod
    def from_line(cls, line: str) -> Request:
        """Reads what ``to_line`` wrote. Raises ``ValueError`` or ``KeyError`` on anything else."""
        data = json.loads(line)
        graph = parse_graph(data["graph"])
        kernel = parse_kernel(data["kernel"])
        region = Region(
            data["name"], RegionKind(data["kind"]), graph, tuple(v for v, _ in graph.inputs), graph.params,
            graph.outputs, tuple(n.output for n in graph.nodes), kernel.signature,
        )  # fmt: skip
        return cls(region, kernel, Source(data["backend"], kernel, data["source"]))
