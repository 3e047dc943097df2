"""The graph's ops in float64 on NumPy: the oracle that kernels are judged against.

Written from the definitions of the ops, independent of MLX's and of our kernels' arithmetic. Casts
between float types are the identity: the oracle rounds nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.dtypes import Affine, DType
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Constant, Graph, Param
from mlx_autoperfect.graph.interpret import Effect, Handler, Symbols, run
from mlx_autoperfect.graph.types import WeightType, evaluate_shape

Array = NDArray[Any]


def dequantize(packed: Array, scales: Array, biases: Array, format_: Affine) -> Array:
    """Weights ``[N, K]`` in float64 from uint32 words ``[N, K*bits/32]``; ``w = q * scale + bias``."""
    per_word = 32 // format_.bits
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(format_.bits)
    mask = np.uint32((1 << format_.bits) - 1)
    codes = ((packed[..., None] >> shifts) & mask).reshape(*packed.shape[:-1], -1)
    grouped = codes.reshape(*codes.shape[:-1], -1, format_.group).astype(np.float64)
    grouped *= scales.astype(np.float64)[..., None]
    grouped += biases.astype(np.float64)[..., None]
    return grouped.reshape(codes.shape)


def bind_param(param: Param, lookup: Mapping[str, Array]) -> Array:
    """A parameter in float64; ``lookup`` goes from path to the stored array."""
    if isinstance(param.type, WeightType):
        parts = [lookup[f"{param.path}.{part}"] for part in param.parts]
        if isinstance(param.type.format, Affine):
            return dequantize(parts[0], parts[1], parts[2], param.type.format)
        return parts[0].astype(np.float64)
    return lookup[param.path].astype(np.float64)


def erf(x: Array) -> Array:
    """The error function, element by element."""
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _gelu(x: Array, tanh: bool) -> Array:
    if tanh:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _logsumexp(x: Array) -> Array:
    top = x.max(axis=-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


_UNARY: dict[str, Any] = {
    "neg": np.negative, "exp": np.exp, "log": np.log, "tanh": np.tanh, "erf": erf, "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "sigmoid": _sigmoid, "square": np.square, "abs": np.abs, "sin": np.sin,
    "cos": np.cos, "log1p": np.log1p, "expm1": np.expm1, "reciprocal": np.reciprocal, "not": np.logical_not,
}  # fmt: skip

_BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": np.power, "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less, "eq": np.equal,
    "ne": np.not_equal, "and": np.logical_and, "or": np.logical_or, "logaddexp": np.logaddexp,
}  # fmt: skip

_REDUCE: dict[str, Any] = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


def _cast(op: ops.Cast, args: tuple[Array, ...], _: Symbols) -> Array:
    if op.dtype is DType.BOOL:
        return args[0].astype(bool)
    return args[0].astype(np.float64 if op.dtype.is_float else np.int64)


def _rms_norm(op: ops.RmsNorm, args: tuple[Array, ...], _: Symbols) -> Array:
    x = args[0]
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + op.eps)
    return y * args[1] if len(args) > 1 else y


def _layer_norm(op: ops.LayerNorm, args: tuple[Array, ...], _: Symbols) -> Array:
    x = args[0]
    y = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + op.eps)
    for i, combine in ((1, np.multiply), (2, np.add)):
        y = combine(y, args[i]) if len(args) > i else y
    return y


def _rope(op: ops.Rope, args: tuple[Array, ...], _: Symbols) -> Array:
    x, offset = args[0], np.asarray(args[1])
    half = op.dims // 2
    exponents = -np.arange(half, dtype=np.float64) * 2 / op.dims
    inverse = 1 / args[2] if len(args) > 2 else np.power(op.base, exponents)
    positions = offset.reshape(-1, 1, 1, 1) + np.arange(x.shape[-2]).reshape(1, 1, -1, 1)
    angle = positions * op.scale * inverse
    cos, sin = np.cos(angle), np.sin(angle)
    first = slice(0, op.dims, 2) if op.traditional else slice(0, half)
    second = slice(1, op.dims, 2) if op.traditional else slice(half, op.dims)
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y


def _attention(op: ops.Attention, args: tuple[Array, ...], _: Symbols) -> Array:
    q, k, v, *mask = args
    batch, heads, rows, _width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, groups, heads // groups, rows, -1)
    scores = op.scale * np.einsum("bgrld,bgtd->bgrlt", grouped, k)
    if op.causal:
        hidden = np.arange(keys) > np.arange(keys - rows, keys)[:, None]
        scores = np.where(hidden, -np.inf, scores)
    elif mask:
        full = np.broadcast_to(mask[0], (batch, heads, rows, keys)).reshape(scores.shape)
        scores = np.where(full, scores, -np.inf) if mask[0].dtype == bool else scores + full
    out = np.einsum("bgrlt,bgte->bgrle", _softmax(scores), v)
    return out.reshape(batch, heads, rows, v.shape[-1])


def _linear(_: ops.Linear, args: tuple[Array, ...], __: Symbols) -> Array:
    y = args[0] @ args[1].T
    return y + args[2] if len(args) > 2 else y


TABLE: dict[type[ops.Op], Handler] = {
    ops.Unary: lambda op, a, s: _UNARY[op.fn](a[0]),
    ops.Binary: lambda op, a, s: _BINARY[op.fn](*a),
    ops.Select: lambda op, a, s: np.where(*a),
    ops.Cast: _cast,
    ops.Silu: lambda op, a, s: a[0] * _sigmoid(a[0]),
    ops.Gelu: lambda op, a, s: _gelu(a[0], op.tanh),
    ops.SwiGLU: lambda op, a, s: a[0] * _sigmoid(a[0]) * a[1],
    ops.GeGLU: lambda op, a, s: _gelu(a[0], op.tanh) * a[1],
    ops.Reduce: lambda op, a, s: _REDUCE[op.fn](a[0], axis=op.axes, keepdims=op.keepdims),
    ops.RmsNorm: _rms_norm,
    ops.LayerNorm: _layer_norm,
    ops.Softmax: lambda op, a, s: _softmax(a[0]),
    ops.LogSumExp: lambda op, a, s: _logsumexp(a[0]),
    ops.Rope: _rope,
    ops.Linear: _linear,
    ops.Attention: _attention,
    ops.Reshape: lambda op, a, s: a[0].reshape(evaluate_shape(op.shape, s)),
    ops.Transpose: lambda op, a, s: a[0].transpose(op.perm),
    ops.Broadcast: lambda op, a, s: np.broadcast_to(a[0], evaluate_shape(op.shape, s)),
    ops.Slice: lambda op, a, s: a[0][
        tuple(map(slice, evaluate_shape(op.start, s), evaluate_shape(op.stop, s), op.step))
    ],
    ops.Concat: lambda op, a, s: np.concatenate(a, axis=op.axis),
    ops.Embedding: lambda op, a, s: a[1][a[0].astype(np.int64)],
}


def constant(value: Constant) -> Array:
    return value.array()


def run_on_float64(
    graph: Graph, inputs: Sequence[Array], lookup: Mapping[str, Array], effect: Effect | None = None
) -> list[Array]:
    """Evaluates ``graph`` in float64; ``lookup`` maps parameter paths to stored arrays (NumPy)."""
    params = {p.value: bind_param(p, lookup) for p in graph.params}
    exact = [x if x.dtype == bool else x.astype(np.float64) for x in inputs]
    return run(graph, TABLE, exact, params, constant, effect)
