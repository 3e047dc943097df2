"""Capturing a model: its root with the blocks as effects, and each distinct block once.

The root's trace also shows how it calls a block (which arguments are masks, which are caches), so a
block's own trace repeats exactly that call; no argument name is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_autoperfect.capture.lift import lift
from mlx_autoperfect.capture.markers import CaptureError, Mark, Marker
from mlx_autoperfect.capture.regime import Regime
from mlx_autoperfect.capture.standins import CacheStandIn
from mlx_autoperfect.capture.symbolic import generalize
from mlx_autoperfect.capture.trace import Arrays, trace
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph
from mlx_autoperfect.graph.spec import SpecError, check_graph


def _checked(graph: Graph) -> Graph:
    """The graph, if it is one that later stages can rely on."""
    try:
        return check_graph(graph)
    except SpecError as error:
        raise CaptureError(Reason.NOT_REPRODUCED, f"the trace does not fit what we know of its ops: {error}") from error


@dataclass(frozen=True)
class CacheArgument:
    """In a recorded call: the cache of block number ``index`` stands here."""

    index: int


@dataclass(frozen=True)
class BlockCall:
    """How the root calls one block: everything but the hidden state, which comes first."""

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    dtype: Any
    width: int

    def bind(self, cache: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with ``cache`` in place of every cache."""

        def fill(value: Any) -> Any:
            return cache if isinstance(value, CacheArgument) else value

        return tuple(map(fill, self.args)), {key: fill(value) for key, value in self.kwargs}


@dataclass(frozen=True)
class RootCapture:
    """The root's graph (``tokens[1,L]`` in, logits out) and its calls of the blocks, in block order."""

    graph: Graph
    calls: tuple[BlockCall, ...]


def _static(value: Any, caches: Sequence[CacheStandIn]) -> Any:
    """A recorded argument: a constant, or which cache it is."""
    for index, cache in enumerate(caches):
        if value is cache:
            return CacheArgument(index)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CaptureError(Reason.NOT_TRACEABLE, f"a block is called with a {type(value).__name__}")


def _trace_root(
    model: nn.Module, blocks: Sequence[nn.Module], rows: int, keys: int
) -> tuple[Graph, tuple[BlockCall, ...]]:
    index_of = {id(block): index for index, block in enumerate(blocks)}
    calls: dict[int, BlockCall] = {}

    def run(marker: Marker, arrays: Arrays) -> Arrays:
        tokens, offset = arrays
        caches = [CacheStandIn(None, offset, keys) for _ in blocks]

        def called(block: nn.Module, h: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            index = index_of[id(block)]
            if index in calls:
                raise CaptureError(Reason.NOT_TRACEABLE, f"block {index} is called twice")
            calls[index] = BlockCall(
                tuple(_static(value, caches) for value in args),
                tuple((key, _static(value, caches)) for key, value in kwargs.items()),
                h.dtype,
                h.shape[-1],
            )
            mark = Mark(ops.CallBlock(index), "block")
            return marker.mark(mark, [h], [mx.zeros(h.shape, h.dtype)])[0]

        classes = {type(block) for block in blocks}
        originals = {cls: cls.__call__ for cls in classes}
        try:
            for cls, original in originals.items():
                cls.__call__ = _diverted(called, original, index_of)
            return [model(tokens, cache=caches)]
        finally:
            for cls, original in originals.items():
                cls.__call__ = original

    tokens = mx.zeros((1, rows), mx.uint32)
    raw = trace(model, run, [tokens, mx.array(3, mx.int32)])
    if len(calls) != len(blocks):
        raise CaptureError(Reason.NOT_TRACEABLE, f"the root calls {len(calls)} of {len(blocks)} blocks")
    return lift(raw, "root", ("tokens", "offset")), tuple(calls[i] for i in range(len(blocks)))


def _diverted(called: Any, original: Any, index_of: dict[int, int]) -> Any:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (called if id(self) in index_of else original)(self, *args, **kwargs)

    return call


def capture_root(model: nn.Module, blocks: Sequence[nn.Module], regime: Regime) -> RootCapture:
    """Captures ``model(tokens, cache=...)`` with every block an effect.

    Raises:
        CaptureError: the root does more with blocks or caches than calling each block once.
    """
    (first, calls), (second, _) = (
        _trace_root(model, blocks, rows, keys) for rows, keys in zip(regime.rows, regime.keys, strict=True)
    )
    return RootCapture(_checked(generalize(first, second, regime.symbols)), calls)


def _trace_block(block: nn.Module, call: BlockCall, rows: int, keys: int, name: str) -> Graph:
    def run(marker: Marker, arrays: Arrays) -> Arrays:
        h, offset = arrays
        args, kwargs = call.bind(CacheStandIn(marker, offset, keys))
        out = block(h, *args, **kwargs)
        if not isinstance(out, mx.array):
            raise CaptureError(Reason.NOT_TRACEABLE, f"the block returns a {type(out).__name__}")
        return [out]

    h = mx.zeros((1, rows, call.width), call.dtype)
    return lift(trace(block, run, [h, mx.array(3, mx.int32)]), name, ("h", "offset"))


def capture_block(block: nn.Module, call: BlockCall, regime: Regime, name: str) -> Graph:
    """Captures one block: ``h[1,L,D]`` and the cache's offset in, the next hidden state out.

    Raises:
        CaptureError: something in the block has no op; the caller tries one level down.
    """
    first, second = (
        _trace_block(block, call, rows, keys, name) for rows, keys in zip(regime.rows, regime.keys, strict=True)
    )
    return _checked(generalize(first, second, regime.symbols))


def fingerprint(module: nn.Module) -> str:
    """What decides a module's graph: classes, plain attributes, shapes and dtypes of its arrays.

    Modules of equal fingerprint share one graph. An attribute that has no reliable text (anything but
    plain values, dataclasses and modules) makes the fingerprint unique.
    """
    parts: list[str] = []

    def visit(path: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            parts.append(f"{path}:{type(value).__module__}.{type(value).__qualname__}")
            for key in sorted(value):
                visit(f"{path}.{key}", value[key])
            for key in sorted(vars(value)):
                if key not in {"_no_grad", "_training"}:
                    visit(f"{path}.{key}", vars(value)[key])
        elif isinstance(value, mx.array):
            # Arrays that are no parameters (frequency tables) enter a trace as constants: by value.
            private = path.rpartition(".")[2].startswith("_")
            data = str(value.tolist()) if private else ""
            parts.append(f"{path}:{value.dtype}{value.shape}{data}")
        elif isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                visit(f"{path}[{key}]", item)
        elif value is None or isinstance(value, bool | int | float | str) or hasattr(value, "__dataclass_fields__"):
            parts.append(f"{path}={value!r}")
        else:
            parts.append(f"{path}={type(value).__qualname__}@{id(value)}")

    visit("", module)
    return "\n".join(parts)
