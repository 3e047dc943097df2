"""Reshapes and transposes are free: a value seen through them is the same memory with other strides."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.ops import Reshape, Transpose
from mlx_autoperfect.graph.types import ArrayType, Dim, Shape, Size, product


def is_view(node: Node | None) -> bool:
    """Whether ``node`` only renames memory."""
    return node is not None and isinstance(node.op, Reshape | Transpose)


def chain_of(graph: Graph, value: str, stored: frozenset[str] = frozenset()) -> tuple[Node, ...]:
    """The views from the base to ``value``, base first; a view in ``stored`` has memory of its own."""
    chain: list[Node] = []
    while value not in stored and is_view(node := graph.producer.get(value)):
        assert node is not None
        chain.append(node)
        value = node.inputs[0]
    return tuple(reversed(chain))


def base_of(graph: Graph, value: str, stored: frozenset[str] = frozenset()) -> str:
    """The value whose memory ``value`` is, through any chain of views."""
    chain = chain_of(graph, value, stored)
    return chain[0].inputs[0] if chain else value


def readers(graph: Graph, value: str) -> tuple[tuple[Node, str], ...]:
    """Who reads ``value``, seen through views: the reading node and the (viewed) value it reads."""
    found: list[tuple[Node, str]] = []
    for node in graph.consumers[value]:
        if is_view(node):
            found += readers(graph, node.output)
        else:
            found.append((node, value))
    return tuple(found)


def escapes(graph: Graph, value: str) -> bool:
    """Whether ``value`` or a view of it is an output of the graph."""
    return value in graph.outputs or any(
        escapes(graph, node.output) for node in graph.consumers[value] if is_view(node)
    )


def times(dim: Dim, factor: Dim) -> Dim:
    """Product of two sizes. Raises ``ValueError`` when two symbols meet."""
    return product((dim, factor))


def row_major(shape: Shape) -> Shape:
    """Strides of a contiguous array, in elements."""
    strides: list[Dim] = []
    step: Dim = 1
    for dim in reversed(shape):
        strides.append(step)
        step = times(step, dim)
    return tuple(reversed(strides))


@dataclass(frozen=True)
class Layout:
    """How the axes of a value lie in its base's memory: one stride per axis, in elements."""

    shape: Shape
    strides: Shape

    @property
    def order_preserving(self) -> bool:
        """Whether walking the axes row-major walks the memory in order, without gaps."""
        expected = row_major(self.shape)
        return all(
            dim == 1 or stride == want for dim, stride, want in zip(self.shape, self.strides, expected, strict=True)
        )


def _reshape_strides(layout: Layout, shape: Shape) -> Shape | None:
    """Strides after a reshape, or ``None`` where it would have to copy.

    Axes are matched from the left in groups of equal element count; a group of one old axis may be
    split, several old axes may only be joined when they are contiguous among themselves.
    """
    if layout.order_preserving:
        return row_major(shape)
    strides: list[Dim] = []
    old = [(d, s) for d, s in zip(layout.shape, layout.strides, strict=True) if d != 1]
    for position, dim in enumerate(shape):
        if dim == 1:
            strides.append(1)
            continue
        if not old:
            return None
        size, stride = old[0]
        if size == dim:
            old.pop(0)
            strides.append(stride)
            continue
        rest = _divide(size, dim)
        if rest is None or position == len(shape) - 1:
            return None
        strides.append(times(stride, rest))
        old[0] = (rest, stride)
    return tuple(strides) if not old else None


def _divide(size: Dim, by: Dim) -> Dim | None:
    if isinstance(size, int) and isinstance(by, int):
        return size // by if size % by == 0 else None
    if isinstance(size, Size) and isinstance(by, Size) and size.symbol == by.symbol:
        return size.factor // by.factor if size.factor % by.factor == 0 else None
    if isinstance(size, Size) and isinstance(by, int) and size.factor % by == 0:
        return Size(size.symbol, size.factor // by)
    return None


def layout_of(graph: Graph, value: str) -> Layout | None:
    """Where ``value`` lies in the row-major memory of its base; ``None`` when a view would copy."""
    base = graph.types[base_of(graph, value)]
    assert isinstance(base, ArrayType)
    layout = Layout(base.shape, row_major(base.shape))
    for node in chain_of(graph, value):
        op = node.op
        if isinstance(op, Transpose):
            layout = Layout(tuple(layout.shape[i] for i in op.perm), tuple(layout.strides[i] for i in op.perm))
        elif isinstance(op, Reshape):
            strides = _reshape_strides(layout, op.shape)
            if strides is None:
                return None
            layout = Layout(op.shape, strides)
    return layout


def layout_within(graph: Graph, value: str, sink: str) -> Layout | None:
    """Where ``value`` lies in the row-major memory of ``sink``, a view of it.

    This is how a kernel writes its result straight into the shape that its only reader wants.
    """
    type_ = graph.types[sink]
    assert isinstance(type_, ArrayType)
    layout = Layout(type_.shape, row_major(type_.shape))
    for node in reversed(chain_of(graph, sink)):
        if node.output == value:
            break
        source = graph.types[node.inputs[0]]
        assert isinstance(source, ArrayType)
        if isinstance(node.op, Transpose):
            inverse = sorted(range(len(node.op.perm)), key=node.op.perm.__getitem__)
            layout = Layout(source.shape, tuple(layout.strides[i] for i in inverse))
        else:
            strides = _reshape_strides(layout, source.shape)
            if strides is None:
                return None
            layout = Layout(source.shape, strides)
        if node.inputs[0] == value:
            break
    return layout
