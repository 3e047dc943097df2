"""A small pattern language over graphs: what a rule looks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.ops import Binary, Op

_COMMUTATIVE = frozenset({"add", "mul", "max", "min"})


@dataclass(frozen=True)
class Any_:
    """Matches any value and binds it to ``name``; the same name must be the same value everywhere."""

    name: str


@dataclass(frozen=True)
class Const:
    """Matches a scalar constant near ``value`` (any scalar when ``None``), seen through broadcasts."""

    value: float | None = None
    name: str = ""
    tolerance: float = 2e-3


@dataclass(frozen=True)
class Match_:
    """Matches a node whose op satisfies ``test`` and whose inputs match; ``name`` binds the node's op."""

    test: Callable[[Op], bool]
    inputs: tuple[Any, ...]
    name: str = ""


Pattern = Any_ | Const | Match_


def op(prototype: Op, *inputs: Pattern) -> Match_:
    """A node with exactly this op."""
    return Match_(lambda found: found == prototype, inputs)


def kind(cls: type[Op], *inputs: Pattern, name: str = "") -> Match_:
    """A node of this class, whatever its attributes."""
    return Match_(lambda found: isinstance(found, cls), inputs, name)


@dataclass
class Bindings:
    """What a pattern matched: values and ops by name, and the nodes strictly inside the pattern."""

    values: dict[str, str] = field(default_factory=dict)
    ops: dict[str, Op] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    interior: list[Node] = field(default_factory=list)

    def copy(self) -> Bindings:
        return Bindings(dict(self.values), dict(self.ops), dict(self.scalars), list(self.interior))


def _scalar(graph: Graph, value: str) -> float | None:
    from mlx_autoperfect.graph.ops import Broadcast, Cast, Reshape

    while (node := graph.producer.get(value)) is not None and isinstance(node.op, Broadcast | Cast | Reshape):
        value = node.inputs[0]
    constant = graph.constant_of.get(value)
    return constant.data[0] if constant is not None and len(constant.data) == 1 else None


def _match(graph: Graph, pattern: Pattern, value: str, bound: Bindings, inside: bool) -> Bindings | None:
    if isinstance(pattern, Any_):
        if bound.values.setdefault(pattern.name, value) != value:
            return None
        return bound
    if isinstance(pattern, Const):
        scalar = _scalar(graph, value)
        if scalar is None:
            return None
        if pattern.value is not None and abs(scalar - pattern.value) > pattern.tolerance * abs(pattern.value):
            return None
        if pattern.name:
            bound.scalars[pattern.name] = scalar
        return bound
    node = graph.producer.get(value)
    if node is None or len(node.inputs) != len(pattern.inputs) or not pattern.test(node.op):
        return None
    # A value that something else reads too must stay; matching over it would compute it twice.
    if inside and (len(graph.consumers[value]) > 1 or value in graph.outputs):
        return None
    if inside:
        bound.interior.append(node)
    if pattern.name:
        bound.ops[pattern.name] = node.op
    orders = [node.inputs]
    if isinstance(node.op, Binary) and node.op.fn in _COMMUTATIVE:
        orders.append(node.inputs[::-1])
    for order in orders:
        attempt: Bindings | None = bound.copy()
        for part, source in zip(pattern.inputs, order, strict=True):
            attempt = _match(graph, part, source, attempt, True) if attempt is not None else None
        if attempt is not None:
            return attempt
    return None


def match(graph: Graph, pattern: Match_, node: Node) -> Bindings | None:
    """Bindings when ``pattern`` matches with ``node`` as its root, else ``None``."""
    return _match(graph, pattern, node.output, Bindings(), False)
