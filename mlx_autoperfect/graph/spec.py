"""What a well-formed graph is; checked after capture and after every pass.

``infer`` gives the types that an op must have from the types of its inputs; a graph whose declared
types differ is wrong, whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mlx_autoperfect.dtypes import Affine, DType
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.types import ArrayType, Shape, Type, WeightType, product

Types = tuple[Any, ...]


class SpecError(AssertionError):
    """A graph that a stage should never have produced: a bug in this package."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def promote(dtypes: Iterable[DType]) -> DType:
    """The dtype that MLX computes in: floats win over others, different floats meet in float32."""
    found = list(dict.fromkeys(dtypes))
    floats = [dtype for dtype in found if dtype.is_float]
    if len(floats) > 1:
        return DType.F32
    return floats[0] if floats else found[0]


def _dtype_of(type_: Any) -> DType:
    if isinstance(type_, WeightType):
        return type_.format.scale if isinstance(type_.format, Affine) else type_.format.dtype
    dtype: DType = type_.dtype
    return dtype


def _broadcast(shapes: list[Shape]) -> Shape:
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result: list[Any] = []
    for dims in zip(*padded, strict=True):
        wide = {dim for dim in dims if dim != 1}
        _require(len(wide) <= 1, f"shapes {shapes} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _same_rows(op: Any, types: Types) -> Type:
    x = types[0]
    for extra in types[1:]:
        _require(extra.shape == x.shape[-1:], f"{op.name}: weight {extra} does not fit rows of {x}")
    return ArrayType(promote(map(_dtype_of, types)), x.shape)


def _elementwise(op: Any, types: Types) -> Type:
    arrays = types[1:] if isinstance(op, ops.Select) else types
    return ArrayType(promote(map(_dtype_of, arrays)), _broadcast([t.shape for t in types]))


def _binary(op: ops.Binary, types: Types) -> Type:
    dtype = DType.BOOL if op.fn in ops.COMPARISONS else promote(map(_dtype_of, types))
    return ArrayType(dtype, _broadcast([t.shape for t in types]))


def _reduce(op: ops.Reduce, types: Types) -> Type:
    x = types[0]
    kept = [1 if i in op.axes else dim for i, dim in enumerate(x.shape) if op.keepdims or i not in op.axes]
    return ArrayType(x.dtype, tuple(kept))


def _linear(_: ops.Linear, types: Types) -> Type:
    x, weight = types[0], types[1]
    _require(isinstance(weight, WeightType), f"linear: {weight} is not a weight matrix")
    _require(x.shape[-1] == weight.shape[1], f"linear: {x} does not fit {weight}")
    if len(types) > 2:
        _require(types[2].shape == (weight.shape[0],), f"linear: bias {types[2]} does not fit {weight}")
    return ArrayType(promote(map(_dtype_of, types)), (*x.shape[:-1], weight.shape[0]))


def _attention(_: ops.Attention, types: Types) -> Type:
    q, k, v = types[:3]
    _require(len(q.shape) == len(k.shape) == len(v.shape) == 4, "attention: q, k and v have four axes")
    _require(q.shape[3] == k.shape[3] and k.shape[:3] == v.shape[:3], f"attention: {q}, {k}, {v} do not fit")
    _require(q.shape[1] % k.shape[1] == 0, f"attention: {q.shape[1]} heads over {k.shape[1]} key heads")
    return ArrayType(q.dtype, (*q.shape[:3], v.shape[3]))


def _reshape(op: ops.Reshape, types: Types) -> Type:
    _require(product(op.shape) == product(types[0].shape), f"reshape: {types[0]} has other elements than {op.shape}")
    return ArrayType(types[0].dtype, op.shape)


def _transpose(op: ops.Transpose, types: Types) -> Type:
    _require(sorted(op.perm) == list(range(len(types[0].shape))), f"transpose: {op.perm} does not fit {types[0]}")
    return ArrayType(types[0].dtype, tuple(types[0].shape[i] for i in op.perm))


def _broadcast_to(op: ops.Broadcast, types: Types) -> Type:
    _require(_broadcast([types[0].shape, op.shape]) == op.shape, f"broadcast: {types[0]} to {op.shape}")
    return ArrayType(types[0].dtype, op.shape)


INFER: dict[type[ops.Op], Callable[[Any, Types], Type]] = {
    ops.Unary: _elementwise,
    ops.Binary: _binary,
    ops.Select: _elementwise,
    ops.Cast: lambda op, types: ArrayType(op.dtype, types[0].shape),
    ops.Silu: _elementwise,
    ops.Gelu: _elementwise,
    ops.SwiGLU: _elementwise,
    ops.GeGLU: _elementwise,
    ops.Reduce: _reduce,
    ops.RmsNorm: _same_rows,
    ops.LayerNorm: _same_rows,
    ops.Softmax: lambda op, types: types[0],
    ops.LogSumExp: lambda op, types: ArrayType(types[0].dtype, (*types[0].shape[:-1], 1)),
    ops.Rope: lambda op, types: types[0],
    ops.Linear: _linear,
    ops.Attention: _attention,
    ops.Reshape: _reshape,
    ops.Transpose: _transpose,
    ops.Broadcast: _broadcast_to,
}


def check_node(node: Node, types: Types) -> None:
    """Raises :class:`SpecError` when a node's declared type is not what its op yields."""
    infer = INFER.get(type(node.op))
    if infer is None:
        return
    expected = infer(node.op, types)
    _require(node.types == (expected,), f"{node.op.name} yields {expected}, declared {node.types}")


def check_graph(graph: Graph) -> Graph:
    """Returns ``graph`` unchanged.

    Raises:
        SpecError: a value defined twice, used before its definition, never defined, or of a wrong type.
    """
    known: dict[str, Type] = {}
    for value, type_ in (
        *graph.inputs,
        *((p.value, p.type) for p in graph.params),
        *((c.value, c.type) for c in graph.constants),
    ):
        _require(value not in known, f"%{value} is defined twice")
        known[value] = type_
    for node in graph.nodes:
        for value in node.inputs:
            _require(value in known, f"%{value} is used by {node.op.name} before it is defined")
        check_node(node, tuple(known[value] for value in node.inputs))
        for value, type_ in zip(node.outputs, node.types, strict=True):
            _require(value not in known, f"%{value} is defined twice")
            known[value] = type_
    for value in graph.outputs:
        _require(value in known, f"output %{value} is never defined")
    return graph
