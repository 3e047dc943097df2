"""Runs a partition region by region in float64, as an independent check of how a graph was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.dtypes import Affine
from mlx_autoperfect.errors import Failure
from mlx_autoperfect.fusion.partition import Partition
from mlx_autoperfect.fusion.region import Region
from mlx_autoperfect.fusion.views import is_view
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.interpret import Symbols, bind_symbols
from mlx_autoperfect.graph.on_float64 import TABLE, bind_param, run_on_float64
from mlx_autoperfect.graph.ops import OpClass
from mlx_autoperfect.graph.types import ArrayType, WeightType, evaluate_shape
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect.kernel.machine import reference

Array = NDArray[Any]
RunRegion = Callable[[Region, list[Array], Mapping[str, Array]], list[Array]]
Effect = Callable[[Node, tuple[Array, ...]], Sequence[Array]]


def draw(type_: Any, seed: int, symbols: Mapping[str, int]) -> dict[str, Array]:
    """Stored arrays of a value, by part (``""`` for a plain array)."""
    rng = np.random.default_rng(seed)
    if isinstance(type_, ArrayType):
        shape = evaluate_shape(type_.shape, symbols)
        return {"": rng.standard_normal(shape) if type_.dtype.is_float else np.full(shape, 7)}
    rows, columns = type_.shape
    if not isinstance(type_.format, Affine):
        return {"weight": rng.standard_normal((rows, columns)) / np.sqrt(columns)}
    words = rng.integers(0, 1 << 32, (rows, columns * type_.format.bits // 32), dtype=np.uint64)
    groups = (rows, columns // type_.format.group)
    return {
        "weight": words.astype(np.uint32),
        "scales": rng.standard_normal(groups) / 2**type_.format.bits,
        "biases": rng.standard_normal(groups),
    }


def inputs_of(graph: Graph, symbols: Mapping[str, int], seed: int = 0) -> tuple[list[Array], dict[str, Array]]:
    """Random inputs and parameters (by path) of a graph."""
    inputs = [draw(type_, seed + i, symbols)[""] for i, (_, type_) in enumerate(graph.inputs)]
    lookup: dict[str, Array] = {}
    for i, param in enumerate(graph.params):
        for part, array in draw(param.type, seed + 100 + i, symbols).items():
            lookup[f"{param.path}.{part}" if part else param.path] = array
    return inputs, lookup


def local_params(region: Region, lookup: Mapping[str, Array]) -> dict[str, Array]:
    """The region's parameters under the names that its own graph gives them."""
    found: dict[str, Array] = {}
    for own, parent in zip(region.graph.params, region.params, strict=True):
        assert (isinstance(own.type, WeightType), own.type) == (bool(own.parts), parent.type)
        if own.parts:
            found.update({f"{own.path}.{part}": lookup[f"{parent.path}.{part}"] for part in parent.parts})
        else:
            found[own.path] = lookup[parent.path]
    return found


def by_oracle(region: Region, inputs: list[Array], params: Mapping[str, Array]) -> list[Array]:
    """The region's graph in float64."""
    return run_on_float64(region.graph, inputs, params)


def by_machine(
    region: Region, inputs: list[Array], params: Mapping[str, Array], many_rows: bool = False
) -> list[Array]:
    """The region's kernel on the reference machine; a region without a kernel by the oracle."""
    kernel = lower(region, many_rows=many_rows)
    if isinstance(kernel, Failure):
        return by_oracle(region, inputs, params)
    named = dict(zip((name for name, _ in region.graph.inputs), inputs, strict=True))
    scalars = {name: int(named.pop(name)) for name in kernel.scalars}
    arrays = {name: np.asarray(array, np.float64) for name, array in named.items()}
    arrays.update((p.value, bind_param(p, params)) for p in region.graph.params)
    return reference(kernel, arrays, scalars)


def execute(
    partition: Partition,
    inputs: Sequence[Array],
    lookup: Mapping[str, Array],
    run: RunRegion = by_oracle,
    effect: Effect | None = None,
) -> list[Array]:
    """The outputs of the cut graph, from its regions alone. Fails when a region is given what nobody stored."""
    graph = partition.graph
    values: dict[str, Array] = {}
    symbols: Symbols = {}
    for (name, type_), array in zip(graph.inputs, inputs, strict=True):
        values[name] = np.asarray(array)
        bind_symbols(type_.shape, values[name].shape, symbols)
    values.update((c.value, c.array()) for c in graph.constants if len(c.data) > 1)
    regions = list(partition.regions)
    effects = [node for node in graph.nodes if node.op.kind is OpClass.EFFECT]
    views = [node for node in graph.nodes if is_view(node)]
    while regions or effects:
        for node in views:
            if node.output not in values and node.inputs[0] in values:
                values[node.output] = TABLE[type(node.op)](node.op, (values[node.inputs[0]],), symbols)
        region = next((r for r in regions if all(v in values for v in r.inputs)), None)
        if region is not None:
            regions.remove(region)
            results = run(region, [values[v] for v in region.inputs], local_params(region, lookup))
            values.update(zip(region.outputs, results, strict=True))
            continue
        ready = next((n for n in effects if all(v in values for v in n.inputs)), None)
        assert ready is not None and effect is not None, "a region waits for a value that nothing stores"
        effects.remove(ready)
        results = list(effect(ready, tuple(values[v] for v in ready.inputs)))
        for type_, array in zip(ready.types, results, strict=True):
            bind_symbols(type_.shape, array.shape, symbols)
        values.update(zip(ready.outputs, results, strict=True))
    for node in views:
        if node.output not in values and node.inputs[0] in values:
            values[node.output] = TABLE[type(node.op)](node.op, (values[node.inputs[0]],), symbols)
    return [values[name] for name in graph.outputs]
