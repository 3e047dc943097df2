"""May two groups of nodes become one kernel? Each refusal has a reason."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_autoperfect.errors import Reason
from mlx_autoperfect.fusion.region import RegionKind
from mlx_autoperfect.fusion.views import base_of, escapes, layout_of, readers
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.ops import OpClass
from mlx_autoperfect.graph.types import ArrayType, Dim


@dataclass
class Group:
    """Nodes that are one kernel so far, in graph order."""

    kind: RegionKind
    nodes: list[Node]

    @property
    def ids(self) -> set[int]:
        return {id(node) for node in self.nodes}

    def text(self) -> str:
        return " ".join("%" + node.output for node in self.nodes)


@dataclass(frozen=True)
class Refused:
    """Why not: a reason code and a sentence."""

    reason: Reason
    detail: str


_KIND_OF = {
    OpClass.ELEMENTWISE: RegionKind.ROWS,
    OpClass.ROWWISE: RegionKind.ROWS,
    OpClass.GEMM: RegionKind.GEMM,
    OpClass.ATTENTION: RegionKind.ATTENTION,
}


def kind_of(graph: Graph, node: Node) -> RegionKind:
    """The kind of the group that ``node`` alone forms; STOCK where no kernel can compute it."""
    kind = _KIND_OF.get(node.op.kind, RegionKind.STOCK)
    types = [graph.types[v] for v in (*node.inputs, *node.outputs)]
    floats = all(not isinstance(t, ArrayType) or t.dtype.is_float or t.shape == () for t in types)
    return kind if floats else RegionKind.STOCK


def width(graph: Graph, value: str) -> Dim:
    """Size of the last axis, along which rows lie."""
    shape = graph.types[value].shape
    return shape[-1] if shape else 1


def _keeps_rows(graph: Graph, value: str) -> bool:
    """Whether the views of ``value`` leave the last axis as its base has it, or split it evenly."""
    layout = layout_of(graph, value)
    return layout is not None and (not layout.strides or layout.strides[-1] == 1)


def _whole(graph: Graph, value: str) -> bool:
    """Whether ``value`` is its base under another name: no axis moved, same row width."""
    layout = layout_of(graph, value)
    same = width(graph, value) == width(graph, base_of(graph, value))
    return layout is not None and layout.order_preserving and same


def _edges(graph: Graph, producer: Group, consumer: Group) -> list[tuple[str, Node, str]]:
    """``(value of the producer, reading node, value as read)`` for each edge between the groups."""
    inside = consumer.ids
    return [
        (value, node, seen)
        for made in producer.nodes
        for value in made.outputs
        for node, seen in readers(graph, value)
        if id(node) in inside
    ]


def _only_reader(graph: Graph, producer: Group, consumer: Group) -> Refused | None:
    allowed = producer.ids | consumer.ids
    for made in producer.nodes:
        for value in made.outputs:
            others = [node for node, _ in readers(graph, value) if id(node) not in allowed]
            if others or escapes(graph, value):
                who = f"%{others[0].output} reads it too" if others else "it is an output"
                return Refused(Reason.MULTI_CONSUMER, f"%{value} has to be stored anyway: {who}")
    return None


def _rows_into_gemm(graph: Graph, producer: Group, consumer: Group) -> Refused | None:
    for value, node, seen in _edges(graph, producer, consumer):
        if not isinstance(node.op, ops.Linear) or node.inputs[0] != seen:
            return Refused(Reason.ANCHOR_CONFLICT, f"%{value} does not feed the rows of a matrix product")
        if not _whole(graph, seen):
            return Refused(Reason.SHAPE_MISMATCH, f"%{value} is read with its axes moved")
        if any(isinstance(made.op, ops.Rope) for made in producer.nodes):
            return Refused(Reason.ANCHOR_CONFLICT, "a rotation of heads is no row program of a matrix product")
    return _only_reader(graph, producer, consumer)


def _gemm_into_rows(graph: Graph, producer: Group, consumer: Group) -> Refused | None:
    for node in consumer.nodes:
        if node.op.kind is not OpClass.ELEMENTWISE:
            return Refused(
                Reason.REDUCTION_BOUNDARY,
                f"%{node.output} ({node.op.name}) works on whole rows of its input, which is spread over workers",
            )
        for value in node.inputs:
            if isinstance(graph.types[value], ArrayType) and not _epilogue_operand(graph, value, node):
                detail = f"%{value} is no column, row or element operand of %{node.output}"
                return Refused(Reason.SHAPE_MISMATCH, detail)
    for value, _, seen in _edges(graph, producer, consumer):
        if not _whole(graph, seen):
            return Refused(Reason.SHAPE_MISMATCH, f"%{value} is read with its axes moved")
    return _only_reader(graph, producer, consumer)


def _epilogue_operand(graph: Graph, value: str, node: Node) -> bool:
    """Operands an epilogue can load: elements of the result, one value per column, or a constant."""
    shape, result = graph.types[value].shape, node.types[0].shape
    if value in graph.constant_of:
        return graph.constant_of[value].array().size == 1
    return (shape == result and _whole(graph, value)) or shape == result[-1:]


def _rows_into_rows(graph: Graph, producer: Group, consumer: Group) -> Refused | None:
    widths = {width(graph, node.output) for node in (*producer.nodes, *consumer.nodes)}
    if len(widths) > 1:
        return Refused(Reason.SHAPE_MISMATCH, f"rows of {', '.join(sorted(map(str, widths)))} elements")
    for value, _, seen in _edges(graph, producer, consumer):
        if not _keeps_rows(graph, seen) or width(graph, seen) != width(graph, value):
            return Refused(Reason.SHAPE_MISMATCH, f"the rows of %{value} are cut differently where they are read")
    return _only_reader(graph, producer, consumer)


_VERTICAL = {
    (RegionKind.ROWS, RegionKind.GEMM): _rows_into_gemm,
    (RegionKind.GEMM, RegionKind.ROWS): _gemm_into_rows,
    (RegionKind.ROWS, RegionKind.ROWS): _rows_into_rows,
}


def reaches(graph: Graph, start: Group, goal: Group, skip_direct: bool) -> bool:
    """Whether ``goal`` depends on ``start``; ``skip_direct`` asks for a path through a third node."""
    targets = goal.ids
    stack = [
        node
        for made in start.nodes
        for value in made.outputs
        for node, _ in readers(graph, value)
        if id(node) not in start.ids and not (skip_direct and id(node) in targets)
    ]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in targets:
            return True
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack += [other for value in node.outputs for other, _ in readers(graph, value)]
    return False


def may_merge(graph: Graph, producer: Group, consumer: Group) -> Refused | None:
    """``None`` when ``consumer`` may be computed in the kernel of ``producer``; the reason otherwise."""
    if RegionKind.STOCK in (producer.kind, consumer.kind):
        return Refused(Reason.OPAQUE, "there is no kernel for one of them")
    rule = _VERTICAL.get((producer.kind, consumer.kind))
    if rule is None:
        if producer.kind is RegionKind.GEMM and consumer.kind is RegionKind.GEMM:
            first = consumer.nodes[0]
            return Refused(
                Reason.REDUCTION_BOUNDARY,
                f"%{first.output} reduces over all of %{base_of(graph, first.inputs[0])}, which is spread over workers",
            )
        return Refused(Reason.ANCHOR_CONFLICT, f"{producer.kind} and {consumer.kind} are two kernels")
    refused = rule(graph, producer, consumer)
    if refused is None and reaches(graph, producer, consumer, skip_direct=True):
        return Refused(Reason.WOULD_CYCLE, "another kernel lies between them")
    return refused


def may_join(graph: Graph, first: Group, second: Group) -> Refused | None:
    """Whether two independent groups may share one kernel (siblings that read the same rows)."""
    if reaches(graph, first, second, False) or reaches(graph, second, first, False):
        return Refused(Reason.WOULD_CYCLE, "one needs the other's result")
    if first.kind is RegionKind.GEMM:
        formats = {graph.types[n.inputs[1]].format.text for n in (*first.nodes, *second.nodes)}  # type: ignore[union-attr]
        if len(formats) > 1:
            return Refused(Reason.FORMAT_MISMATCH, f"weights stored as {' and '.join(sorted(formats))}")
        return None
    shapes = [graph.types[group.nodes[-1].output].shape for group in (first, second)]
    if shapes[0][-1] != shapes[1][-1] or shapes[0][-2:-1] != shapes[1][-2:-1]:
        return Refused(Reason.SHAPE_MISMATCH, f"rows of {shapes[0]} and of {shapes[1]}")
    return None
