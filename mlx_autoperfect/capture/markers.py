"""Semantic markers: while a trace runs, fused MLX ops and leaf modules announce what they are.

On a CPU ``mx.fast.*`` falls apart into primitives, so the raw graph differs between backends. Here
each such call passes its result through ``mx.depends(result, [tag, *inputs])``. The trace then holds
a ``Depends`` node whose tag says which op it is and on what it works, and everything between those
inputs and the result collapses into that one node (see :mod:`mlx_autoperfect.capture.lift`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.graph import ops

_TAG_BASE = 1_900_000_000


class CaptureError(Exception):
    """Leaves a trace early; becomes the :class:`~mlx_autoperfect.errors.Failure` it carries."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(Stage.CAPTURE, reason, detail)


@dataclass(frozen=True)
class Mark:
    """What a marker stands for.

    Attributes:
        op: the semantic op.
        origin: a name for people.
        quantized: bits and group size when the weight operand is affine-quantised, else ``None``.
        weight_at: position of the weight matrix among the inputs, or -1.
    """

    op: ops.Op
    origin: str
    quantized: tuple[int, int] | None = None
    weight_at: int = -1


class Marker:
    """The marks of one trace. ``mark`` wraps results; ``find`` reads tags back."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def mark(self, mark: Mark, inputs: Sequence[mx.array], results: Sequence[mx.array]) -> list[mx.array]:
        """``results`` tied to ``inputs`` under a fresh tag."""
        tag = mx.array(_TAG_BASE + len(self.marks), mx.int32)
        self.marks.append(mark)
        tied: list[mx.array] = mx.depends(list(results), [tag, *inputs])
        return tied

    def find(self, constant: mx.array) -> Mark | None:
        """The mark whose tag ``constant`` is, if it is one."""
        if constant.size != 1 or constant.dtype != mx.int32:
            return None
        value: Any = constant.item()
        index = int(value) - _TAG_BASE
        return self.marks[index] if 0 <= index < len(self.marks) else None


def _rms_norm(marker: Marker, fn: Any) -> Any:
    def wrapped(x: mx.array, weight: mx.array | None, eps: float, **kwargs: Any) -> mx.array:
        inputs = [x] if weight is None else [x, weight]
        return marker.mark(Mark(ops.RmsNorm(eps), "mx.fast.rms_norm"), inputs, [fn(x, weight, eps, **kwargs)])[0]

    return wrapped


def _layer_norm(marker: Marker, fn: Any) -> Any:
    def wrapped(x: mx.array, weight: Any, bias: Any, eps: float, **kwargs: Any) -> mx.array:
        if weight is None and bias is not None:
            raise CaptureError(Reason.UNSUPPORTED_PRIMITIVE, "layer_norm with a bias and no weight")
        inputs = [x, *(a for a in (weight, bias) if a is not None)]
        result = fn(x, weight, bias, eps, **kwargs)
        return marker.mark(Mark(ops.LayerNorm(eps), "mx.fast.layer_norm"), inputs, [result])[0]

    return wrapped


def _rope(marker: Marker, fn: Any) -> Any:
    def wrapped(
        x: mx.array, dims: int, *, traditional: bool, base: float | None, scale: float, offset: Any,
        freqs: mx.array | None = None, **kwargs: Any,
    ) -> mx.array:  # fmt: skip
        result = fn(x, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs, **kwargs)
        op = ops.Rope(dims, 0.0 if base is None else float(base), float(scale), traditional)
        position = offset if isinstance(offset, mx.array) else mx.array(offset, mx.int32)
        inputs = [x, position] if freqs is None else [x, position, freqs]
        return marker.mark(Mark(op, "mx.fast.rope"), inputs, [result])[0]

    return wrapped


def _attention(marker: Marker, fn: Any) -> Any:
    def wrapped(
        q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, sinks: Any = None, **kwargs: Any
    ) -> mx.array:
        if sinks is not None:
            raise CaptureError(Reason.UNSUPPORTED_PRIMITIVE, "attention with sinks")
        result = fn(q, k, v, scale=scale, mask=mask, **kwargs)
        inputs = [q, k, v, *([mask] if isinstance(mask, mx.array) else [])]
        op = ops.Attention(float(scale), mask == "causal" if isinstance(mask, str) else False)
        return marker.mark(Mark(op, "mx.fast.scaled_dot_product_attention"), inputs, [result])[0]

    return wrapped


_FAST: dict[str, Callable[[Marker, Any], Any]] = {
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "scaled_dot_product_attention": _attention,
}


def _weights(module: nn.Module) -> tuple[list[mx.array], tuple[int, int] | None]:
    """The arrays of a weight matrix in kernel order, and bits and group size when quantised."""
    if "scales" not in module:
        return [module["weight"]], None
    if getattr(module, "mode", "affine") != "affine":
        raise CaptureError(Reason.UNSUPPORTED_FORMAT, f"quantisation mode {module.mode}")
    return [module["weight"], module["scales"], module["biases"]], (module.bits, module.group_size)


def _leaf(op: ops.Op, origin: str) -> Callable[[Marker, Any], Any]:
    """Marks ``module(x)`` as ``op(x, weight[, bias])``."""

    def make(marker: Marker, fn: Any) -> Any:
        def wrapped(self: nn.Module, x: mx.array) -> mx.array:
            parts, quantized = _weights(self)
            bias = [self["bias"]] if "bias" in self and isinstance(op, ops.Linear) else []
            return marker.mark(Mark(op, origin, quantized, 1), [x, *parts, *bias], [fn(self, x)])[0]

        return wrapped

    return make


_MODULES: tuple[tuple[type[nn.Module], str, ops.Op], ...] = (
    (nn.Linear, "__call__", ops.Linear()),
    (nn.QuantizedLinear, "__call__", ops.Linear()),
    (nn.Embedding, "as_linear", ops.Linear()),
    (nn.QuantizedEmbedding, "as_linear", ops.Linear()),
    (nn.Embedding, "__call__", ops.Embedding()),
    (nn.QuantizedEmbedding, "__call__", ops.Embedding()),
)


def _compiles() -> bool:
    """Whether ``mx.compile`` is in effect: MLX does not say, so a function is called twice and its runs are counted."""
    runs = 0

    def counted(x: mx.array) -> mx.array:
        nonlocal runs
        runs += 1
        return x

    compiled, x = mx.compile(counted), mx.zeros(1)
    compiled(x)
    compiled(x)
    return runs == 1


@contextmanager
def marking(marker: Marker) -> Iterator[None]:
    """While open: fused ops and leaf modules mark their results, and ``mx.compile`` is transparent."""
    saved: list[tuple[Any, str, Any]] = []
    compiles = _compiles()

    def replace(owner: Any, name: str, make: Callable[[Marker, Any], Any]) -> None:
        original = getattr(owner, name)
        saved.append((owner, name, original))
        setattr(owner, name, make(marker, original))

    try:
        for name, make in _FAST.items():
            replace(mx.fast, name, make)
        for cls, method, op in _MODULES:
            replace(cls, method, _leaf(op, f"nn.{cls.__name__}"))
        mx.disable_compile()
        yield
    finally:
        if compiles:
            mx.enable_compile()
        for owner, name, original in reversed(saved):
            setattr(owner, name, original)
