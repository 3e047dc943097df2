"""The operations of the graph: one frozen dataclass each, with typed attributes.

An op says only what it computes. How it is printed, checked, interpreted and fused is decided by
tables elsewhere that are keyed by these classes; :class:`OpClass` is what fusion looks at.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.graph.types import Shape


class OpClass(StrEnum):
    """What fusion needs to know of an op."""

    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    ROWWISE = "rowwise"
    GEMM = "gemm"
    ATTENTION = "attention"
    RESHAPE = "reshape"
    INDEXING = "indexing"
    EFFECT = "effect"


@dataclass(frozen=True)
class Op:
    """Base of all operations."""

    name: ClassVar[str]
    kind: ClassVar[OpClass]


@dataclass(frozen=True)
class Unary(Op):
    """``fn(x)``, element by element; ``fn`` is a key of ``UNARY``."""

    fn: str
    name = "unary"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class Binary(Op):
    """``fn(a, b)`` on equal shapes, or with NumPy broadcasting of stride-0 axes."""

    fn: str
    name = "binary"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class Select(Op):
    """``a if condition else b``; inputs ``(condition, a, b)``."""

    name = "select"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class Cast(Op):
    """Conversion to ``dtype``."""

    dtype: DType
    name = "cast"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class Silu(Op):
    """``x * sigmoid(x)`` (Hendrycks and Gimpel 2016, SiLU)."""

    name = "silu"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class Gelu(Op):
    """``x * Phi(x)``; ``tanh`` selects the tanh approximation (Hendrycks and Gimpel 2016)."""

    tanh: bool
    name = "gelu"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class SwiGLU(Op):
    """``silu(gate) * up`` (Shazeer 2020); inputs ``(gate, up)``."""

    name = "swiglu"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class GeGLU(Op):
    """``gelu(gate) * up`` (Shazeer 2020); inputs ``(gate, up)``."""

    tanh: bool
    name = "geglu"
    kind = OpClass.ELEMENTWISE


@dataclass(frozen=True)
class Reduce(Op):
    """Reduction over ``axes``, kept as size 1 when ``keepdims``; ``fn`` is sum, max, min or prod."""

    fn: str
    axes: tuple[int, ...]
    keepdims: bool
    name = "reduce"
    kind = OpClass.REDUCTION


@dataclass(frozen=True)
class RmsNorm(Op):
    """``x * rsqrt(mean(x**2, -1) + eps) * weight`` (Zhang and Sennrich 2019); inputs ``(x[, weight])``."""

    eps: float
    name = "rms_norm"
    kind = OpClass.ROWWISE


@dataclass(frozen=True)
class LayerNorm(Op):
    """``(x - mean) * rsqrt(var + eps) * weight + bias`` over the last axis; inputs ``(x[, weight[, bias]])``."""

    eps: float
    name = "layer_norm"
    kind = OpClass.ROWWISE


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax over the last axis with the maximum subtracted first."""

    precise: bool
    name = "softmax"
    kind = OpClass.ROWWISE


@dataclass(frozen=True)
class LogSumExp(Op):
    """``log(sum(exp(x), -1))``, the maximum subtracted first; the last axis stays with size 1."""

    name = "logsumexp"
    kind = OpClass.ROWWISE


@dataclass(frozen=True)
class Rope(Op):
    """Rotary position embedding (Su et al. 2021) of ``x[..., L, D]`` as ``mx.fast.rope`` defines it.

    Inputs ``(x, offset[, freqs])``: the first ``dims`` features are rotated by the angle
    ``(offset + l) * scale * base**(-2i/dims)``, or ``(offset + l) * scale / freqs[i]``. ``base`` is 0
    when ``freqs`` is given. ``traditional`` pairs neighbours instead of halves.
    """

    dims: int
    base: float
    scale: float
    traditional: bool
    name = "rope"
    kind = OpClass.ROWWISE


@dataclass(frozen=True)
class Linear(Op):
    """``x @ weight.T (+ bias)``; inputs ``(x, weight[, bias])``, weight dense or quantised."""

    name = "linear"
    kind = OpClass.GEMM


@dataclass(frozen=True)
class Attention(Op):
    """``softmax(scale * q k^T + mask) v`` over ``q[B,H,L,D]``, ``k[B,G,T,D]``, ``v[B,G,T,E]``.

    ``H`` is a multiple of ``G``; query head ``h`` reads key head ``h // (H // G)``. ``causal``: query
    ``l`` sees keys ``0 .. T - L + l``. Inputs ``(q, k, v[, mask])``; a mask is boolean (keep) or additive.
    """

    scale: float
    causal: bool
    name = "attention"
    kind = OpClass.ATTENTION


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in row-major order under another ``shape``."""

    shape: Shape
    name = "reshape"
    kind = OpClass.RESHAPE


@dataclass(frozen=True)
class Transpose(Op):
    """Axes reordered: output axis ``i`` is input axis ``perm[i]``."""

    perm: tuple[int, ...]
    name = "transpose"
    kind = OpClass.RESHAPE


@dataclass(frozen=True)
class Broadcast(Op):
    """NumPy broadcasting to ``shape``."""

    shape: Shape
    name = "broadcast"
    kind = OpClass.RESHAPE


@dataclass(frozen=True)
class Slice(Op):
    """``x[start:stop:step]`` per axis."""

    start: Shape
    stop: Shape
    step: tuple[int, ...]
    name = "slice"
    kind = OpClass.INDEXING


@dataclass(frozen=True)
class Concat(Op):
    """Inputs joined along ``axis``."""

    axis: int
    name = "concat"
    kind = OpClass.INDEXING


@dataclass(frozen=True)
class Embedding(Op):
    """Rows of a weight matrix by index; inputs ``(indices, weight)``."""

    name = "embedding"
    kind = OpClass.INDEXING


@dataclass(frozen=True)
class CacheUpdate(Op):
    """Effect: appends ``(keys, values)`` to cache ``index``, returns all its keys and values so far.

    A block alone has one cache, of index 0.
    """

    index: int = 0
    name = "cache_update"
    kind = OpClass.EFFECT


@dataclass(frozen=True)
class CallBlock(Op):
    """Effect: runs transformer block number ``index`` on the hidden state."""

    index: int
    name = "call_block"
    kind = OpClass.EFFECT


OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Unary, Binary, Select, Cast, Silu, Gelu, SwiGLU, GeGLU, Reduce, RmsNorm, LayerNorm, Softmax, LogSumExp, Rope,
        Linear, Attention, Reshape, Transpose, Broadcast, Slice, Concat, Embedding, CacheUpdate, CallBlock,
    )
}  # fmt: skip

UNARY = frozenset(
    [
        "neg",
        "exp",
        "log",
        "tanh",
        "erf",
        "sqrt",
        "rsqrt",
        "sigmoid",
        "square",
        "abs",
        "sin",
        "cos",
        "log1p",
        "expm1",
        "reciprocal",
        "not",
    ]
)
BINARY = frozenset(
    ["add", "sub", "mul", "div", "max", "min", "pow", "ge", "gt", "le", "lt", "eq", "ne", "and", "or", "logaddexp"]
)
COMPARISONS = frozenset(["ge", "gt", "le", "lt", "eq", "ne", "and", "or"])
