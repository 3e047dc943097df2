"""Growing regions: greedy, in graph order, one fusion at a time, each within its fuel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.fusion.cost import Saving, saving, should_merge
from mlx_autoperfect.fusion.legality import Group, Refused, kind_of, may_join, may_merge
from mlx_autoperfect.fusion.region import Region, RegionKind, build_region
from mlx_autoperfect.fusion.views import base_of, is_view, layout_within, readers
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.ops import OpClass


class Fuel:
    """A budget of fusions, shared by everything that one run fuses; ``None`` is unlimited."""

    def __init__(self, amount: int | None = None) -> None:
        self.left = amount

    def take(self) -> bool:
        """Uses one unit; ``False`` when there is none left."""
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0


@dataclass(frozen=True)
class Fusion:
    """One accepted fusion: what joined what, and what that saves."""

    first: str
    second: str
    saving: Saving


@dataclass(frozen=True)
class Partition:
    """How a graph is cut.

    Attributes:
        graph: the graph that was cut.
        regions: in an order in which each one's inputs exist.
        fusions: what was fused, in order.
        refused: what was not, each with its reason.
    """

    graph: Graph
    regions: tuple[Region, ...]
    fusions: tuple[Fusion, ...]
    refused: tuple[Failure, ...]


class _Partitioner:
    def __init__(self, graph: Graph, fuel: Fuel) -> None:
        self.graph = graph
        self.fuel = fuel
        self.groups: dict[int, Group] = {
            id(node): Group(kind_of(graph, node), [node])
            for node in graph.nodes
            if not is_view(node) and node.op.kind is not OpClass.EFFECT
        }
        self.position = {id(node): i for i, node in enumerate(graph.nodes)}
        self.fusions: list[Fusion] = []
        self.refused: dict[tuple[str, str], Failure] = {}

    def attempt(self, first: Group, second: Group, refused: Refused | None) -> bool:
        """Joins two groups unless refused; records what happened."""
        key = (first.text(), second.text())
        refused = refused or should_merge(self.graph, first, second)
        if refused is None and not self.fuel.take():
            refused = Refused(Reason.OUT_OF_FUEL, "AUTOPERFECT_FUEL is used up")
        if refused is not None:
            where = f"{key[0]} + {key[1]}"
            self.refused[key] = Failure(Stage.PARTITION, refused.reason, refused.detail, where)
            return False
        self.fusions.append(Fusion(*key, saving(self.graph, first, second)))
        kinds = {first.kind, second.kind}
        nodes = sorted((*first.nodes, *second.nodes), key=lambda node: self.position[id(node)])
        merged = Group(RegionKind.GEMM if RegionKind.GEMM in kinds else first.kind, nodes)
        for node in nodes:
            self.groups[id(node)] = merged
        return True

    def distinct(self) -> list[Group]:
        """The groups, each once, by the position of their last node."""
        unique = {id(group): group for group in self.groups.values()}
        return sorted(unique.values(), key=lambda g: self.position[id(g.nodes[-1])])

    def join_siblings(self) -> None:
        """Matrix products of the same rows become one kernel with several jobs."""
        by_rows: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, ops.Linear):
                by_rows.setdefault(node.inputs[0], []).append(node)
        for nodes in by_rows.values():
            for node in nodes[1:]:
                first, second = self.groups[id(nodes[0])], self.groups[id(node)]
                if first is not second and RegionKind.STOCK not in (first.kind, second.kind):
                    self.attempt(first, second, may_join(self.graph, first, second))

    def join_rotations(self) -> None:
        """Rotations at the same positions become one kernel."""
        by_offset: dict[tuple[str, ops.Op], list[Node]] = {}
        for node in self.graph.nodes:
            if isinstance(node.op, ops.Rope):
                by_offset.setdefault((node.inputs[1], node.op), []).append(node)
        for nodes in by_offset.values():
            for node in nodes[1:]:
                first, second = self.groups[id(nodes[0])], self.groups[id(node)]
                if first is not second:
                    self.attempt(first, second, may_join(self.graph, first, second))

    def edges(self) -> Iterator[tuple[Group, Group]]:
        """Producer and consumer groups, in graph order of the consumer."""
        for node in self.graph.nodes:
            if id(node) not in self.groups:
                continue
            for value in node.inputs:
                source = self.graph.producer.get(base_of(self.graph, value))
                if source is not None and id(source) in self.groups:
                    first, second = self.groups[id(source)], self.groups[id(node)]
                    if first is not second:
                        yield first, second

    def grow(self) -> None:
        """Merges along edges until a whole round refuses everything."""
        tried: set[tuple[str, str]] = set()
        changed = True
        while changed:
            changed = False
            for first, second in self.edges():
                key = (first.text(), second.text())
                if key in tried:
                    continue
                tried.add(key)
                if self.attempt(first, second, may_merge(self.graph, first, second)):
                    changed = True
                    break

    def sinks(self) -> dict[str, str]:
        """Results whose readers all want the same view: their kernel writes that view directly."""
        table: dict[str, str] = {}
        for node in self.graph.nodes:
            group = self.groups.get(id(node))
            if group is None or group.kind is RegionKind.STOCK:
                continue
            for value in node.outputs:
                sink = self._sink(value)
                layout = layout_within(self.graph, value, sink) if sink != value else None
                # A matrix product writes its result in order; the other kernels write rows with any strides between.
                if layout is None:
                    continue
                rows_whole = layout.shape[-1] == 1 or layout.strides[-1] == 1
                if layout.order_preserving or (group.kind is not RegionKind.GEMM and rows_whole):
                    table[value] = sink
        return table

    def _sink(self, value: str) -> str:
        while value not in self.graph.outputs:
            consumers = self.graph.consumers[value]
            if len(consumers) != 1 or not is_view(consumers[0]):
                break
            # A rotation wants heads outside rows; its kernel reads any strides, so nothing is gained there.
            if any(isinstance(node.op, ops.Rope | ops.RmsNorm) for node, _ in readers(self.graph, value)):
                break
            value = consumers[0].output
        return value

    def finish(self) -> Partition:
        sinks = self.sinks()
        regions = tuple(build_region(self.graph, group.nodes, group.kind, sinks) for group in self.distinct())
        covered = {value for region in regions for value in region.nodes}
        current = {key: f for key, f in self.refused.items() if self._still_apart(key)}
        assert len(covered) == len(self.groups)
        return Partition(self.graph, _ordered(self.graph, regions), tuple(self.fusions), tuple(current.values()))

    def _still_apart(self, key: tuple[str, str]) -> bool:
        alive = {group.text() for group in self.distinct()}
        return key[0] in alive and key[1] in alive


def _ordered(graph: Graph, regions: tuple[Region, ...]) -> tuple[Region, ...]:
    """Regions in an order in which inputs come first, as close to graph order as that allows."""
    position = {value: i for i, node in enumerate(graph.nodes) for value in node.outputs}

    def first_possible(region: Region) -> tuple[int, int]:
        ready = max((position.get(v, -1) for v in region.inputs), default=-1)
        return (ready, min(position[v] for v in region.nodes))

    return tuple(sorted(regions, key=first_possible))


def partition(graph: Graph, fuel: Fuel | None = None) -> Partition:
    """Cuts a canonical graph into regions.

    Args:
        graph: canonical, checked.
        fuel: how many fusions may be made; unlimited when ``None``.
    """
    worker = _Partitioner(graph, fuel or Fuel())
    worker.join_siblings()
    worker.grow()
    worker.join_rotations()
    return worker.finish()
