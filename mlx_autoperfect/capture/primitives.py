"""Raw MLX primitives that mean an op of ours; whatever is missing here is a capture failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.capture.trace import Primitive
from mlx_autoperfect.dtypes import dtype_from_mlx
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.graph import ops

_SAME = {
    "Negative": "neg", "Exp": "exp", "Tanh": "tanh", "Erf": "erf", "Sigmoid": "sigmoid",
    "Square": "square", "Abs": "abs", "Sin": "sin", "Cos": "cos", "Log1p": "log1p", "Expm1": "expm1",
    "LogicalNot": "not",
}  # fmt: skip
_PAIR = {
    "Add": "add", "Subtract": "sub", "Multiply": "mul", "Divide": "div", "Maximum": "max", "Minimum": "min",
    "Power": "pow", "GreaterEqual": "ge", "Greater": "gt", "LessEqual": "le", "Less": "lt", "Equal": "eq",
    "NotEqual": "ne", "LogicalAnd": "and", "LogicalOr": "or", "LogAddExp": "logaddexp",
}  # fmt: skip
# Code of mlx::core::Log::Base for the natural logarithm; log2 and log10 are the same primitive.
_LOG_E = 2
# Codes of mlx::core::Reduce::ReduceType.
_REDUCE = {2: "sum", 3: "prod", 4: "min", 5: "max"}


def _unsupported(primitive: Primitive) -> CaptureError:
    return CaptureError(Reason.UNSUPPORTED_PRIMITIVE, f"{primitive.name}{list(primitive.arguments)}")


def _always(made: ops.Op) -> Callable[[Primitive], ops.Op]:
    return lambda _: made


def _cast(p: Primitive) -> ops.Op:
    dtype = dtype_from_mlx(p.arguments[0])
    if dtype is None:
        raise _unsupported(p)
    return ops.Cast(dtype)


def _natural_log(p: Primitive) -> ops.Op:
    if p.arguments[0] != _LOG_E:
        raise _unsupported(p)
    return ops.Unary("log")


def _reduce(p: Primitive) -> ops.Op:
    code, axes = p.arguments
    if code not in _REDUCE:
        raise _unsupported(p)
    return ops.Reduce(_REDUCE[code], tuple(axes), keepdims=True)


def _reshape(p: Primitive) -> ops.Op:
    return ops.Reshape(p.outputs[0][1])


TABLE: dict[str, Callable[[Primitive], ops.Op]] = {
    **{name: _always(ops.Unary(fn)) for name, fn in _SAME.items()},
    **{name: _always(ops.Binary(fn)) for name, fn in _PAIR.items()},
    "Log": lambda p: _natural_log(p),
    "Sqrt": lambda p: ops.Unary("rsqrt" if p.arguments[0] else "sqrt"),
    "Select": lambda p: ops.Select(),
    "AsType": _cast,
    "Reduce": _reduce,
    "Softmax": lambda p: ops.Softmax(bool(p.arguments[0])),
    "Reshape": _reshape,
    "ExpandDims": _reshape,
    "Squeeze": _reshape,
    "Flatten": _reshape,
    "Unflatten": _reshape,
    "Transpose": lambda p: ops.Transpose(tuple(p.arguments[0])),
    "Broadcast": lambda p: ops.Broadcast(p.outputs[0][1]),
    "Slice": lambda p: ops.Slice(*(tuple(part) for part in p.arguments)),
    "Concatenate": lambda p: ops.Concat(int(p.arguments[0])),
}


def lift_primitive(primitive: Primitive) -> ops.Op:
    """The op that ``primitive`` is. Raises :class:`CaptureError` where there is none."""
    make: Any = TABLE.get(primitive.name)
    if make is None:
        raise _unsupported(primitive)
    return make(primitive)  # type: ignore[no-any-return]
