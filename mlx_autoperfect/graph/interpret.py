"""Running a graph, on any array library that supplies a table of ops.

Two tables exist: :mod:`mlx_autoperfect.graph.on_mlx`, which must equal eager MLX bit for bit, and
:mod:`mlx_autoperfect.graph.on_float64`, the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.ops import Op, OpClass
from mlx_autoperfect.graph.types import Shape, Size

Symbols = dict[str, int]
Handler = Callable[[Any, tuple[Any, ...], Symbols], Any]
Effect = Callable[[Node, tuple[Any, ...]], Sequence[Any]]


def bind_symbols(shape: Shape, actual: Sequence[int], symbols: Symbols) -> None:
    """Learns the value of each symbol in ``shape`` from an actual shape.

    Raises:
        ValueError: the ranks differ, a fixed size differs, or a symbol would have two values.
    """
    if len(shape) != len(actual):
        raise ValueError(f"expected {len(shape)} axes, got shape {tuple(actual)}")
    for dim, size in zip(shape, actual, strict=True):
        if isinstance(dim, Size):
            value, rest = divmod(size, dim.factor)
            if rest or symbols.setdefault(dim.symbol, value) != value:
                raise ValueError(f"size {size} does not fit {dim} with {symbols}")
        elif dim != size:
            raise ValueError(f"expected size {dim}, got {size} in {tuple(actual)}")


def run(
    graph: Graph,
    table: Mapping[type[Op], Handler],
    inputs: Sequence[Any],
    params: Mapping[str, Any],
    constant: Callable[[Any], Any],
    effect: Effect | None = None,
) -> list[Any]:
    """Evaluates ``graph``.

    Args:
        graph: the program.
        table: how each op is done.
        inputs: one array per graph input, in order.
        params: by value name of the parameter: an array, or for a matrix the format and its parts.
        constant: makes an array of a :class:`~mlx_autoperfect.graph.graph.Constant`.
        effect: answers effect nodes; ``None`` where the graph has none.

    Returns:
        The graph's outputs.

    Raises:
        ValueError: an input's shape does not fit.
        KeyError: the table lacks an op.
    """
    symbols: Symbols = {}
    values: dict[str, Any] = dict(params)
    for (name, type_), array in zip(graph.inputs, inputs, strict=True):
        bind_symbols(type_.shape, array.shape, symbols)
        values[name] = array
    values.update((c.value, constant(c)) for c in graph.constants)
    for node in graph.nodes:
        arguments = tuple(values[name] for name in node.inputs)
        if node.op.kind is OpClass.EFFECT:
            if effect is None:
                raise ValueError(f"{node.op.name} is an effect and nothing answers it")
            results = effect(node, arguments)
            for type_, array in zip(node.types, results, strict=True):
                bind_symbols(type_.shape, array.shape, symbols)
            values.update(zip(node.outputs, results, strict=True))
        else:
            values[node.output] = table[type(node.op)](node.op, arguments, symbols)
    return [values[name] for name in graph.outputs]
