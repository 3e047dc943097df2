"""What each elementwise and row-wise op is, as a scalar program."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

from mlx_autoperfect.graph import ops
from mlx_autoperfect.kernel.program import ProgramBuilder, RowReduce

Args = tuple[str, ...]


def _mean(b: ProgramBuilder, x: str, width: int) -> str:
    return b.apply("mul", b.add(RowReduce("sum", x)), b.const(1.0 / width))


def _scale_shift(b: ProgramBuilder, x: str, args: Args) -> str:
    for fn, arg in zip(("mul", "add"), args[1:], strict=False):
        x = b.apply(fn, x, arg)
    return x


def _rms_norm(b: ProgramBuilder, op: ops.RmsNorm, a: Args, width: int) -> str:
    mean = _mean(b, b.apply("mul", a[0], a[0]), width)
    inverse = b.apply("rsqrt", b.apply("add", mean, b.const(op.eps)))
    return _scale_shift(b, b.apply("mul", a[0], inverse), a)


def _layer_norm(b: ProgramBuilder, op: ops.LayerNorm, a: Args, width: int) -> str:
    centred = b.apply("sub", a[0], _mean(b, a[0], width))
    variance = _mean(b, b.apply("mul", centred, centred), width)
    inverse = b.apply("rsqrt", b.apply("add", variance, b.const(op.eps)))
    return _scale_shift(b, b.apply("mul", centred, inverse), a)


def _softmax(b: ProgramBuilder, op: ops.Softmax, a: Args, width: int) -> str:
    e = b.apply("exp", b.apply("sub", a[0], b.add(RowReduce("max", a[0]))))
    return b.apply("div", e, b.add(RowReduce("sum", e)))


def _logsumexp(b: ProgramBuilder, op: ops.LogSumExp, a: Args, width: int) -> str:
    top = b.add(RowReduce("max", a[0]))
    total = b.add(RowReduce("sum", b.apply("exp", b.apply("sub", a[0], top))))
    return b.apply("add", top, b.apply("log", total))


def _silu(b: ProgramBuilder, x: str) -> str:
    return b.apply("mul", x, b.apply("sigmoid", x))


def _gelu(b: ProgramBuilder, x: str, tanh: bool) -> str:
    half = b.apply("mul", b.const(0.5), x)
    if tanh:
        cube = b.apply("mul", x, b.apply("mul", x, x))
        inner = b.apply("add", x, b.apply("mul", b.const(0.044715), cube))
        bell = b.apply("tanh", b.apply("mul", b.const(sqrt(2 / pi)), inner))
    else:
        bell = b.apply("erf", b.apply("mul", x, b.const(1 / sqrt(2))))
    return b.apply("mul", half, b.apply("add", b.const(1.0), bell))


def _unary(b: ProgramBuilder, op: ops.Unary, a: Args, width: int) -> str:
    return b.apply("mul", a[0], a[0]) if op.fn == "square" else b.apply(op.fn, a[0])


# Unary and binary functions that scalar programs know; the graph has more.
FUNCTIONS = frozenset(
    [
        "neg",
        "exp",
        "log",
        "tanh",
        "erf",
        "sqrt",
        "rsqrt",
        "sigmoid",
        "abs",
        "add",
        "sub",
        "mul",
        "div",
        "max",
        "min",
        "square",
    ]
)

EXPAND: dict[type[ops.Op], Callable[[ProgramBuilder, Any, Args, int], str]] = {
    ops.Unary: _unary,
    ops.Binary: lambda b, op, a, width: b.apply(op.fn, *a),
    ops.Cast: lambda b, op, a, width: a[0],
    ops.Silu: lambda b, op, a, width: _silu(b, a[0]),
    ops.Gelu: lambda b, op, a, width: _gelu(b, a[0], op.tanh),
    ops.SwiGLU: lambda b, op, a, width: b.apply("mul", _silu(b, a[0]), a[1]),
    ops.GeGLU: lambda b, op, a, width: b.apply("mul", _gelu(b, a[0], op.tanh), a[1]),
    ops.RmsNorm: _rms_norm,
    ops.LayerNorm: _layer_norm,
    ops.Softmax: _softmax,
    ops.LogSumExp: _logsumexp,
}
