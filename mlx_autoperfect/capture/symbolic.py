"""Which sizes are symbolic: learnt by tracing twice with different sizes and comparing the graphs."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.types import Size


def _unify_int(a: int, b: int, symbols: dict[str, tuple[int, int]]) -> int | Size:
    if a == b:
        return a
    for symbol, (first, second) in symbols.items():
        factor, rest = divmod(a, first)
        if not rest and factor and b == factor * second:
            return Size(symbol, factor)
    raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, f"a size is {a} in one trace and {b} in another")


def _unify(a: Any, b: Any, symbols: dict[str, tuple[int, int]]) -> Any:
    if type(a) is not type(b):
        raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, f"{a!r} in one trace, {b!r} in another")
    if isinstance(a, bool | str | float):
        if a != b:
            raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, f"{a!r} in one trace, {b!r} in another")
        return a
    if isinstance(a, int):
        return _unify_int(a, b, symbols)
    if isinstance(a, tuple):
        if len(a) != len(b):
            raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, f"{len(a)} parts in one trace, {len(b)} in another")
        return tuple(_unify(x, y, symbols) for x, y in zip(a, b, strict=True))
    if is_dataclass(a) and not isinstance(a, type):
        return replace(a, **{f.name: _unify(getattr(a, f.name), getattr(b, f.name), symbols) for f in fields(a)})
    if a != b:
        raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, f"{a!r} in one trace, {b!r} in another")
    return a


def generalize(first: Graph, second: Graph, symbols: dict[str, tuple[int, int]]) -> Graph:
    """The graph that both traces are instances of.

    Args:
        first, second: the same function traced with two sizes per symbol.
        symbols: symbol -> its value in ``first`` and in ``second``.

    Raises:
        CaptureError: the traces differ by more than these sizes.
    """
    if len(first.nodes) != len(second.nodes) or first.outputs != second.outputs:
        raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, "the number of operations depends on the sizes")

    def node(a: Node, b: Node) -> Node:
        if a.inputs != b.inputs:
            raise CaptureError(Reason.SHAPE_NOT_SYMBOLIC, f"{a.op.name} reads other values when sizes change")
        return replace(a, op=_unify(a.op, b.op, symbols), types=_unify(a.types, b.types, symbols))

    return replace(
        first,
        inputs=_unify(first.inputs, second.inputs, symbols),
        constants=_unify(first.constants, second.constants, symbols),
        nodes=tuple(node(a, b) for a, b in zip(first.nodes, second.nodes, strict=True)),
    )
