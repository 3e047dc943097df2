"""From a partitioned graph and its proven kernels to a prepared forward.

Kernels that follow each other without an effect between them become one sequence: one node of MLX's
graph, one call from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from mlx_autoperfect.fusion.partition import Partition
from mlx_autoperfect.fusion.region import Region
from mlx_autoperfect.fusion.views import base_of, chain_of, is_view
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node, Param
from mlx_autoperfect.graph.interpret import run as run_graph
from mlx_autoperfect.graph.on_mlx import TABLE, bind_param, constant
from mlx_autoperfect.graph.ops import OpClass
from mlx_autoperfect.hookspecs import Backend, Guard, Launch, Sequencer, SequenceSpec, Slot
from mlx_autoperfect.kernel.abi import flatten
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.runtime.stages import BlockStage, CacheStage, Forward, KernelStage, Stage, StockStage

# What every sequence is told at a call: rows of hidden state, positions in the cache before and after.
SYMBOLS = ("L", "offset", "T")


@dataclass(frozen=True)
class Proven:
    """A kernel that passed verification here, built."""

    kernel: Kernel
    executable: Any


def module_at(root: nn.Module, path: str) -> Any:
    """The module (or list item) at a dotted path."""
    found: Any = root
    for part in path.split(".") if path else ():
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def slots_of(root: nn.Module, params: Sequence[Param]) -> tuple[tuple[Any, str], ...]:
    """Where each array of each parameter lives: ``(module, key)``."""
    found: list[tuple[Any, str]] = []
    for param in params:
        if param.parts:
            owner = module_at(root, param.path)
            found += [(owner, part) for part in param.parts]
        else:
            owner_path, _, key = param.path.rpartition(".")
            found.append((module_at(root, owner_path), key))
    return tuple(found)


def guards_of(root: nn.Module, params: Sequence[Param]) -> tuple[Guard, ...]:
    """The modules on the way to each parameter: replacing one (an adapter, say) must be noticed."""
    found: dict[tuple[int, str | int], Guard] = {}
    for param in params:
        path = param.path if param.parts else param.path.rpartition(".")[0]
        owner: Any = root
        for part in path.split(".") if path else ():
            key: str | int = int(part) if isinstance(owner, list) else part
            found[id(owner), key] = (owner, key, owner[key])
            owner = owner[key]
    return tuple(found.values())


@dataclass
class _Segment:
    """Regions that will run as one sequence."""

    regions: list[tuple[Region, Proven]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A forward that is not yet bound to a module: shared by all modules of equal graphs.

    Attributes:
        steps: each makes a stage for a given module.
        size: number of values.
        result: index of the value to return.
        kernels: how many kernels one call launches, by name.
    """

    steps: tuple[Callable[[nn.Module], Stage], ...]
    size: int
    result: int
    kernels: tuple[str, ...]

    def bind(self, module: nn.Module) -> Forward:
        """The forward of one module."""
        return Forward(tuple(step(module) for step in self.steps), self.size, self.result)


class _Assembler:
    def __init__(
        self,
        partition: Partition,
        proven: Mapping[str, Proven],
        backend: Backend,
        call_block: Callable[[int], Callable[[Any, Any], Any]] | None,
    ) -> None:
        self.partition = partition
        self.graph: Graph = partition.graph
        self.proven = proven
        self.backend = backend
        self.call_block = call_block
        self.index: dict[str, int] = {}
        self.steps: list[Callable[[nn.Module], Stage]] = []
        self.kernels: list[str] = []
        self.stored: set[str] = {name for name, _ in self.graph.inputs}
        self.sinks = frozenset(
            v for region in partition.regions for v in region.outputs if is_view(self.graph.producer.get(v))
        )
        self.slot(self.graph.inputs[0][0])

    def slot(self, value: str) -> int:
        return self.index.setdefault(value, len(self.index))

    def ready(self, values: Sequence[str]) -> bool:
        fixed = self.graph.param_of.keys() | self.graph.constant_of.keys()
        return all(v in fixed or base_of(self.graph, v, self.sinks) in self.stored for v in values)

    def assemble(self) -> Plan:
        regions = list(self.partition.regions)
        effects = [n for n in self.graph.nodes if n.op.kind is OpClass.EFFECT]
        segment = _Segment()
        while regions or effects:
            region = next((r for r in regions if self.ready(r.inputs)), None)
            if region is not None:
                regions.remove(region)
                proven = self.proven.get(region.signature)
                if proven is None:
                    self.close(segment, regions, effects)
                    self.stock(region)
                else:
                    segment.regions.append((region, proven))
                self.stored.update(region.outputs)
                continue
            self.close(segment, regions, effects)
            node = next(n for n in effects if self.ready(n.inputs))
            effects.remove(node)
            self.effect(node)
            self.stored.update(node.outputs)
        self.close(segment, regions, effects)
        result = self.viewed(self.graph.outputs[0])
        return Plan(tuple(self.steps), len(self.index), result, tuple(self.kernels))

    def viewed(self, value: str) -> int:
        """The slot of ``value`` itself, applying views to what is stored where it is a view."""
        chain = chain_of(self.graph, value, self.sinks)
        if value in self.index or not chain:
            return self.slot(value)
        source = self.slot(chain[0].inputs[0])
        target = self.slot(value)
        run = _views(self.graph, chain)
        self.steps.append(lambda _: StockStage(run, (source,), (), (target,)))
        return target

    def stock(self, region: Region) -> None:
        """A region without a kernel runs on MLX."""
        values = tuple(self.slot(v) for v in region.inputs)
        results = tuple(self.slot(v) for v in region.outputs)
        run = _stock(region)
        params = region.params
        self.steps.append(lambda module: StockStage(run, values, slots_of(module, params), results))

    def effect(self, node: Node) -> None:
        values = [self.viewed(v) for v in node.inputs]
        results = [self.slot(v) for v in node.outputs]
        if isinstance(node.op, ops.CallBlock):
            assert self.call_block is not None
            stage: Stage = BlockStage(self.call_block(node.op.index), node.op.index, values[0], results[0])
        else:
            assert isinstance(node.op, ops.CacheUpdate)
            stage = CacheStage(node.op.index, (values[0], values[1]), (results[0], results[1]))
        self.steps.append(lambda _: stage)

    def close(self, segment: _Segment, regions: Sequence[Region], effects: Sequence[Node]) -> None:
        """Turns the collected regions into one sequence."""
        if not segment.regions:
            return
        done = list(segment.regions)
        segment.regions.clear()
        wanted = {base_of(self.graph, v, self.sinks) for r in regions for v in r.inputs}
        wanted |= {base_of(self.graph, v, self.sinks) for n in effects for v in n.inputs}
        wanted |= {base_of(self.graph, v, self.sinks) for v in self.graph.outputs}
        sequence = sequence_of(self.graph, done, wanted, self.backend)
        values = tuple(self.slot(v) for v in sequence.values)
        results = tuple(self.slot(v) for v in sequence.results)
        self.kernels += [region.name for region, _ in done]
        self.steps.append(
            lambda module: KernelStage(
                sequence.run.bind(slots_of(module, sequence.params), guards_of(module, sequence.params)),
                values,
                results,
            )
        )


@dataclass(frozen=True)
class _Sequence:
    run: Sequencer
    values: tuple[str, ...]
    params: tuple[Param, ...]
    results: tuple[str, ...]


def sequence_of(
    graph: Graph, regions: Sequence[tuple[Region, Proven]], wanted: set[str], backend: Backend
) -> _Sequence:
    """Prepares the regions, in order, as one sequence that hands out the ``wanted`` values."""
    made = [v for region, _ in regions for v in region.outputs]
    scalars = {
        v for region, proven in regions for v, (local, _) in zip(region.inputs, region.graph.inputs, strict=True)
        if local in proven.kernel.scalars
    }  # fmt: skip
    outside = dict.fromkeys(v for region, _ in regions for v in region.inputs if v not in made and v not in scalars)
    strided = {
        v for region, proven in regions
        for v, operand in zip((v for v in region.inputs if v not in scalars), proven.kernel.inputs, strict=False)
        if operand.strided
    }  # fmt: skip
    params = tuple({p.value: p for region, _ in regions for p in region.params}.values())
    results = tuple(v for v in made if v in wanted)
    temporaries = tuple(v for v in made if v not in wanted)

    inputs: list[Slot] = []
    first: dict[str, int] = {}
    for value in outside:
        first[value] = len(inputs)
        inputs += _slots(value, graph.types[value], value in strided)
    for param in params:
        first[param.value] = len(inputs)
        inputs += _slots(param.path, param.type, False)
    for value in (*results, *temporaries):
        first[value] = len(inputs) + (*results, *temporaries).index(value)
    launches = []
    for region, proven in regions:
        sources = [v for v in region.inputs if v not in scalars] + [p.value for p in region.params]
        refs = [
            first[v] + part
            for v, operand in zip(sources, proven.kernel.inputs, strict=True)
            for part in range(len(flatten(operand.name, operand.type)))
        ]
        launches.append(Launch(proven.executable, tuple(refs), tuple(first[v] for v in region.outputs)))
    spec = SequenceSpec(
        tuple(launches),
        tuple(inputs),
        tuple(slot for v in results for slot in _slots(v, graph.types[v], False)),
        tuple(slot for v in temporaries for slot in _slots(v, graph.types[v], False)),
        SYMBOLS,
    )
    return _Sequence(backend.sequence(spec), tuple(outside), params, results)


def _slots(name: str, type_: Any, strided: bool) -> list[Slot]:
    return [Slot(name, array.dtype, array.shape, array.strided) for array in flatten(name, type_, strided)]


def _views(graph: Graph, chain: Sequence[Node]) -> Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]:
    base = graph.types[chain[0].inputs[0]]
    small = Graph("views", ((chain[0].inputs[0], base),), (), (), tuple(chain), (chain[-1].output,))
    return lambda values, _: run_graph(small, TABLE, values, {}, constant)


def _stock(region: Region) -> Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]:
    graph = region.graph

    def run(values: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
        given = iter(arrays)
        lookup: dict[str, Any] = {}
        for param in graph.params:
            names = [f"{param.path}.{part}" for part in param.parts] if param.parts else [param.path]
            lookup.update((name, next(given)) for name in names)
        params = {p.value: bind_param(p, lookup) for p in graph.params}
        return run_graph(graph, TABLE, values, params, constant)

    return run


def assemble(
    partition: Partition,
    proven: Mapping[str, Proven],
    backend: Backend,
    call_block: Callable[[int], Callable[[Any, Any], Any]] | None = None,
) -> Plan:
    """Prepares the forward of a partitioned graph.

    Args:
        partition: regions of a canonical graph whose first input is the value that a call passes.
        proven: kernels by region signature; regions without one run on MLX.
        backend: runs the kernels.
        call_block: for a root's graph, how block ``i`` is called with ``(hidden state, cache)``.
    """
    return _Assembler(partition, proven, backend, call_block).assemble()
