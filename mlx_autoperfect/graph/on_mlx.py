"""The graph's ops on MLX: the same calls that mlx-lm makes, so that results are bit-equal to eager."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlx_autoperfect.dtypes import Affine, Format
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Constant, Graph, Param
from mlx_autoperfect.graph.interpret import Effect, Handler, Symbols, run
from mlx_autoperfect.graph.types import ArrayType, WeightType, evaluate_shape

# Where an op's name is not MLX's own.
_MLX_NAME = {
    "neg": "negative", "sub": "subtract", "mul": "multiply", "div": "divide", "max": "maximum", "min": "minimum",
    "pow": "power", "ge": "greater_equal", "gt": "greater", "le": "less_equal", "lt": "less", "eq": "equal",
    "ne": "not_equal", "and": "logical_and", "or": "logical_or", "not": "logical_not",
}  # fmt: skip


def _named(fn: str) -> Any:
    return getattr(mx, _MLX_NAME.get(fn, fn))


class Weight:
    """A weight matrix on MLX: its format and the arrays that hold it, in the order of ``Param.parts``."""

    __slots__ = ("format", "parts")

    def __init__(self, format_: Format, parts: Sequence[mx.array]) -> None:
        self.format = format_
        self.parts = tuple(parts)


def bind_param(param: Param, lookup: Mapping[str, mx.array]) -> Any:
    """The value of a parameter: an array, or a :class:`Weight`. ``lookup`` goes from path to array."""
    if isinstance(param.type, WeightType):
        return Weight(param.type.format, [lookup[f"{param.path}.{part}"] for part in param.parts])
    return lookup[param.path]


def constant(value: Constant) -> mx.array:
    assert isinstance(value.type, ArrayType)
    return mx.array(value.array().tolist(), dtype=value.type.dtype.mlx)


def _linear(_: ops.Linear, args: tuple[Any, ...], __: Symbols) -> mx.array:
    x, weight, *bias = args
    if isinstance(weight.format, Affine):
        packed, scales, biases = weight.parts
        y = mx.quantized_matmul(
            x, packed, scales=scales, biases=biases, transpose=True,
            group_size=weight.format.group, bits=weight.format.bits,
        )  # fmt: skip
        return y + bias[0] if bias else y
    if bias:
        return mx.addmm(bias[0], x, weight.parts[0].T)
    return x @ weight.parts[0].T


def _embedding(_: ops.Embedding, args: tuple[Any, ...], __: Symbols) -> mx.array:
    indices, weight = args
    if isinstance(weight.format, Affine):
        packed, scales, biases = (part[indices] for part in weight.parts)
        return mx.dequantize(
            packed, scales=scales, biases=biases, group_size=weight.format.group, bits=weight.format.bits
        )
    return weight.parts[0][indices]


def _rope(op: ops.Rope, args: tuple[Any, ...], _: Symbols) -> mx.array:
    x, offset, *freqs = args
    return mx.fast.rope(
        x, op.dims, traditional=op.traditional, base=None if freqs else op.base, scale=op.scale,
        offset=offset, freqs=freqs[0] if freqs else None,
    )  # fmt: skip


def _attention(op: ops.Attention, args: tuple[Any, ...], _: Symbols) -> mx.array:
    q, k, v, *mask = args
    return mx.fast.scaled_dot_product_attention(
        q, k, v, scale=op.scale, mask="causal" if op.causal else (mask[0] if mask else None)
    )


def _gelu(x: mx.array, tanh: bool) -> mx.array:
    import mlx.nn as nn

    return nn.gelu_approx(x) if tanh else nn.gelu(x)


_REDUCE = {"sum": mx.sum, "max": mx.max, "min": mx.min, "prod": mx.prod}

TABLE: dict[type[ops.Op], Handler] = {
    ops.Unary: lambda op, a, s: _named(op.fn)(a[0]),
    ops.Binary: lambda op, a, s: _named(op.fn)(*a),
    ops.Select: lambda op, a, s: mx.where(*a),
    ops.Cast: lambda op, a, s: a[0].astype(op.dtype.mlx),
    ops.Silu: lambda op, a, s: a[0] * mx.sigmoid(a[0]),
    ops.Gelu: lambda op, a, s: _gelu(a[0], op.tanh),
    ops.SwiGLU: lambda op, a, s: a[0] * mx.sigmoid(a[0]) * a[1],
    ops.GeGLU: lambda op, a, s: _gelu(a[0], op.tanh) * a[1],
    ops.Reduce: lambda op, a, s: _REDUCE[op.fn](a[0], axis=op.axes, keepdims=op.keepdims),
    ops.RmsNorm: lambda op, a, s: mx.fast.rms_norm(a[0], a[1] if len(a) > 1 else None, op.eps),
    ops.LayerNorm: lambda op, a, s: mx.fast.layer_norm(
        a[0], a[1] if len(a) > 1 else None, a[2] if len(a) > 2 else None, op.eps
    ),
    ops.Softmax: lambda op, a, s: mx.softmax(a[0], axis=-1, precise=op.precise),
    ops.LogSumExp: lambda op, a, s: mx.logsumexp(a[0], axis=-1, keepdims=True),
    ops.Rope: _rope,
    ops.Linear: _linear,
    ops.Attention: _attention,
    ops.Reshape: lambda op, a, s: mx.reshape(a[0], evaluate_shape(op.shape, s)),
    ops.Transpose: lambda op, a, s: mx.transpose(a[0], op.perm),
    ops.Broadcast: lambda op, a, s: mx.broadcast_to(a[0], evaluate_shape(op.shape, s)),
    ops.Slice: lambda op, a, s: a[0][
        tuple(map(slice, evaluate_shape(op.start, s), evaluate_shape(op.stop, s), op.step))
    ],
    ops.Concat: lambda op, a, s: mx.concatenate(list(a), axis=op.axis),
    ops.Embedding: _embedding,
}


def run_on_mlx(
    graph: Graph, inputs: Sequence[mx.array], lookup: Mapping[str, mx.array], effect: Effect | None = None
) -> list[mx.array]:
    """Evaluates ``graph`` lazily on MLX; ``lookup`` maps parameter paths to arrays."""
    params = {p.value: bind_param(p, lookup) for p in graph.params}
    return run(graph, TABLE, inputs, params, constant, effect)
