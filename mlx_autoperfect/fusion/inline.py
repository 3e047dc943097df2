"""A whole model as one partition: the blocks' regions in place of the root's calls of them.

Each block was cut on its own, once per distinct structure; here its regions are only renamed, so that
kernels before and after a block's boundary can run as one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_autoperfect.fusion.partition import Partition
from mlx_autoperfect.fusion.region import Region
from mlx_autoperfect.graph.graph import Constant, Graph, Node, Param
from mlx_autoperfect.graph.ops import CacheUpdate, CallBlock


def _names(values: tuple[str, ...], table: dict[str, str], prefix: str) -> tuple[str, ...]:
    return tuple(table.get(value, prefix + value) for value in values)


class _Inlined:
    """One block's partition under the names of the root."""

    def __init__(self, block: Partition, call: Node, offset: str, path: str) -> None:
        assert isinstance(call.op, CallBlock)
        graph = block.graph
        self.index = call.op.index
        self.prefix = f"b{self.index}_"
        self.table = {
            graph.inputs[0][0]: call.inputs[0],
            graph.inputs[1][0]: offset,
            graph.outputs[0]: call.output,
        }
        self.path = path
        self.nodes = [self.node(node) for node in graph.nodes]
        self.params = {p.value: self.param(p) for p in graph.params}
        self.constants = [Constant(self.prefix + c.value, c.type, c.data, c.shape) for c in graph.constants]
        self.regions = [self.region(region) for region in block.regions]

    def rename(self, values: tuple[str, ...]) -> tuple[str, ...]:
        return _names(values, self.table, self.prefix)

    def node(self, node: Node) -> Node:
        op = CacheUpdate(self.index) if isinstance(node.op, CacheUpdate) else node.op
        return Node(op, self.rename(node.inputs), self.rename(node.outputs), node.types, node.origin)

    def param(self, param: Param) -> Param:
        return Param(self.prefix + param.value, param.type, f"{self.path}.{param.path}", param.parts)

    def region(self, region: Region) -> Region:
        return replace(
            region,
            inputs=self.rename(region.inputs),
            outputs=self.rename(region.outputs),
            nodes=self.rename(region.nodes),
            params=tuple(self.params[p.value] for p in region.params),
        )


def inline_blocks(root: Partition, blocks: Sequence[tuple[str, Partition]]) -> Partition:
    """The partition of the whole model.

    Args:
        root: cut graph with a :class:`CallBlock` effect per block; its inputs are tokens and offset.
        blocks: ``(path, partition)`` of each block, by index.
    """
    graph = root.graph
    offset = graph.inputs[1][0]
    nodes: list[Node] = []
    params: list[Param] = list(graph.params)
    constants = list(graph.constants)
    regions = list(root.regions)
    for node in graph.nodes:
        if not isinstance(node.op, CallBlock):
            nodes.append(node)
            continue
        path, block = blocks[node.op.index]
        inlined = _Inlined(block, node, offset, path)
        nodes += inlined.nodes
        params += inlined.params.values()
        constants += inlined.constants
        regions += inlined.regions
    whole = Graph(graph.name, graph.inputs, tuple(params), tuple(constants), tuple(nodes), graph.outputs)
    return replace(root, graph=whole, regions=tuple(regions))
