"""From a raw trace to a graph: marked regions collapse to one node each, the rest is lifted one to one."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_autoperfect.capture.markers import CaptureError, Mark
from mlx_autoperfect.capture.primitives import lift_primitive
from mlx_autoperfect.capture.trace import Primitive, Trace
from mlx_autoperfect.dtypes import Affine, Dense, dtype_from_mlx
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.graph.graph import Constant, Graph, Node, Param
from mlx_autoperfect.graph.types import ArrayType, Type, WeightType

_MAX_CONSTANT = 4096


def _array_type(shape: tuple[int, ...], dtype: Any) -> ArrayType:
    ours = dtype_from_mlx(dtype)
    if ours is None:
        raise CaptureError(Reason.UNSUPPORTED_PRIMITIVE, f"an array of type {dtype}")
    return ArrayType(ours, shape)


class _Lifter:
    """Builds one graph; values get short names in order of appearance, so equal traces print equally."""

    def __init__(self, trace: Trace, input_names: tuple[str, ...]) -> None:
        self.trace = trace
        self.names: dict[str, str] = {v[0]: name for v, name in zip(trace.inputs, input_names, strict=True)}
        self.params: dict[str, Param] = {}
        self.constants: dict[str, Constant] = {}
        self.producer = {out[0]: p for p in trace.primitives for out in p.outputs}
        self.marks: dict[str, tuple[Mark, list[str], list[str]]] = {}
        for p in trace.primitives:
            if p.name == "Depends" and (found := self._mark(p)):
                self.marks[p.outputs[0][0]] = found

    def _mark(self, p: Primitive) -> tuple[Mark, list[str], list[str]] | None:
        """The mark, the marked results and the inputs of a ``Depends`` node of ours."""
        ids = [value[0] for value in p.inputs]
        for at, name in enumerate(ids):
            constant = self.trace.constants.get(name)
            mark = None if constant is None else self.trace.marker.find(constant)
            if mark is not None:
                return mark, ids[:at], ids[at + 1 :]
        return None

    def live(self) -> set[str]:
        """The primitives (by first output) that outputs need once marked regions have collapsed."""
        seen: set[str] = set()
        stack = list(self.trace.outputs)
        while stack:
            p = self.producer.get(stack.pop())
            if p is None or p.outputs[0][0] in seen:
                continue
            key = p.outputs[0][0]
            seen.add(key)
            stack += self.marks[key][2] if key in self.marks else [value[0] for value in p.inputs]
        return seen

    def value(self, raw: str) -> str:
        """Our name of a raw value; parameters and constants are declared when first met."""
        if raw in self.names:
            return self.names[raw]
        if raw in self.trace.params:
            path, shape, dtype = self.trace.params[raw]
            name = f"p{len(self.params)}"
            self.params[name] = Param(name, _array_type(tuple(shape), dtype), path)
        elif raw in self.trace.constants:
            array = self.trace.constants[raw]
            if array.size > _MAX_CONSTANT:
                raise CaptureError(Reason.UNSUPPORTED_PRIMITIVE, f"a constant of {array.size} elements")
            name = f"c{len(self.constants)}"
            type_ = _array_type(array.shape, array.dtype)
            flat = tuple(float(x) for x in np.array(array.astype(_f32()) if type_.dtype.is_float else array).ravel())
            self.constants[name] = Constant(name, type_, flat, tuple(array.shape))
        else:
            raise CaptureError(Reason.NOT_TRACEABLE, f"value {raw} has no producer")
        self.names[raw] = name
        return name

    def weight(self, mark: Mark, raw: list[str]) -> tuple[str, int]:
        """Declares the weight matrix at ``mark.weight_at``; returns its name and how many arrays it took."""
        count = 3 if mark.quantized else 1
        arrays = raw[mark.weight_at : mark.weight_at + count]
        if any(name not in self.trace.params for name in arrays):
            raise CaptureError(Reason.UNSUPPORTED_PRIMITIVE, f"{mark.origin} whose weight is computed")
        entries = [self.trace.params[name] for name in arrays]
        owner = entries[0][0].rpartition(".")[0]
        for known in self.params.values():
            if known.path == owner and known.parts:
                return known.value, count
        shape = entries[0][1]
        if mark.quantized:
            bits, group = mark.quantized
            scale = _array_type((), entries[1][2]).dtype
            type_ = WeightType(Affine(bits, group, scale), (shape[0], shape[1] * 32 // bits))
        else:
            type_ = WeightType(Dense(_array_type((), entries[0][2]).dtype), (shape[0], shape[1]))
        name = f"p{len(self.params)}"
        self.params[name] = Param(name, type_, owner, tuple(e[0].rpartition(".")[2] for e in entries))
        return name, count

    def node(self, p: Primitive, number: int) -> Node:
        types: tuple[Type, ...] = tuple(_array_type(shape, dtype) for _, shape, dtype in p.outputs)
        outputs = tuple(f"v{number}" if i == 0 else f"v{number}_{i}" for i in range(len(types)))
        found = self.marks.get(p.outputs[0][0])
        if found is None:
            op, origin = lift_primitive(p), ""
            inputs = tuple(self.value(value[0]) for value in p.inputs)
        else:
            mark, _, raw = found
            op, origin = mark.op, mark.origin
            inputs, origin = self._marked_inputs(mark, raw, origin)
        self.names.update((value[0], name) for value, name in zip(p.outputs, outputs, strict=True))
        return Node(op, inputs, outputs, types, origin)

    def _marked_inputs(self, mark: Mark, raw: list[str], origin: str) -> tuple[tuple[str, ...], str]:
        if mark.weight_at < 0:
            names = tuple(self.value(name) for name in raw)
        else:
            weight, count = self.weight(mark, raw)
            before = [self.value(name) for name in raw[: mark.weight_at]]
            after = [self.value(name) for name in raw[mark.weight_at + count :]]
            names = (*before, weight, *after)
        paths = [self.params[name].path for name in names if name in self.params]
        return names, f"{origin} {paths[0]}" if paths else origin


def _f32() -> Any:
    import mlx.core as mx

    return mx.float32


def lift(trace: Trace, name: str, input_names: tuple[str, ...]) -> Graph:
    """The graph of a trace.

    Raises:
        CaptureError: a primitive that no op stands for, a weight that is computed, an unknown dtype.
    """
    lifter = _Lifter(trace, input_names)
    live = lifter.live()
    nodes = [lifter.node(p, number) for number, p in enumerate(q for q in trace.primitives if q.outputs[0][0] in live)]
    outputs = tuple(lifter.value(raw) for raw in trace.outputs)
    inputs = tuple(
        (ours, _array_type(shape, dtype)) for (_, shape, dtype), ours in zip(trace.inputs, input_names, strict=True)
    )
    graph = Graph(name, inputs, tuple(lifter.params.values()), tuple(lifter.constants.values()), tuple(nodes), outputs)
    return graph.with_nodes(graph.nodes)
