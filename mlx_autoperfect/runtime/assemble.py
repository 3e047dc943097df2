"""From a partitioned graph and its proven kernels to a prepared forward.

Kernels that follow each other without an effect between them become one sequence: one node of MLX's
graph, one call from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from mlx_autoperfect.hookspecs import Backend, Guard
from mlx_autoperfect.runtime.sequence import AppendItem, Item, KernelItem, Proven, prepare
from mlx_autoperfect.runtime.stages import (
    BlockStage,
    CachedKernelStage,
    CacheStage,
    Forward,
    KernelStage,
    OffsetStage,
    Stage,
    StockStage,
    TableStage,
)


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
        updates_per_node: int,
    ) -> None:
        self.partition = partition
        self.graph: Graph = partition.graph
        self.proven = proven
        self.backend = backend
        self.call_block = call_block
        self.updates_per_node = updates_per_node
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
        items: list[Item] = []
        while regions or effects:
            region = next((r for r in regions if self.ready(r.inputs)), None)
            if region is not None:
                regions.remove(region)
                proven = self.proven.get(region.signature)
                if proven is None:
                    self.close(items, regions, effects)
                    self.stock(region)
                else:
                    items.append(KernelItem(region, proven))
                self.stored.update(region.outputs)
                continue
            node = next(n for n in effects if self.ready(n.inputs))
            appended = sum(isinstance(item, AppendItem) for item in items)
            if appended >= self.updates_per_node or not self.inlines(node):
                self.close(items, regions, effects)
            effects.remove(node)
            if self.inlines(node):
                items.append(AppendItem(node))
            else:
                self.effect(node)
            self.stored.update(node.outputs)
        self.close(items, regions, effects)
        result = self.viewed(self.graph.outputs[0])
        return Plan(tuple(self.steps), len(self.index), result, tuple(self.kernels))

    def inlines(self, node: Node) -> bool:
        """Whether a sequence updates the cache itself: it was asked to, and keys and values are stored as they are."""
        stored = all(not chain_of(self.graph, v, self.sinks) for v in node.inputs)
        return self.updates_per_node > 0 and isinstance(node.op, ops.CacheUpdate) and stored

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

    def supply(self, values: Sequence[str]) -> None:
        """Makes the constant tables among ``values`` available."""
        for value in values:
            if value in self.graph.constant_of and value not in self.index:
                stage = TableStage(constant(self.graph.constant_of[value]), self.slot(value))
                self.steps.append(lambda _, stage=stage: stage)  # type: ignore[misc]

    def stock(self, region: Region) -> None:
        """A region without a kernel runs on MLX."""
        self.supply(region.inputs)
        offset = self.graph.inputs[1][0] if len(self.graph.inputs) > 1 else ""
        if offset in region.inputs and offset not in self.index:
            result = self.slot(offset)
            self.steps.append(lambda _: OffsetStage(result))
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

    def close(self, items: list[Item], regions: Sequence[Region], effects: Sequence[Node]) -> None:
        """Turns the collected items into one sequence."""
        if not items:
            return
        done = list(items)
        items.clear()
        needed = [v for r in regions for v in r.inputs] + [v for n in effects for v in n.inputs]
        wanted = {base_of(self.graph, v, self.sinks) for v in (*needed, *self.graph.outputs)}
        sequence = prepare(self.graph, done, wanted, self.backend)
        self.supply(sequence.values)
        values = tuple(self.slot(v) for v in sequence.values)
        results = tuple(self.slot(v) for v in sequence.results)
        self.kernels += [item.region.name for item in done if isinstance(item, KernelItem)]
        caches = sequence.caches

        def step(module: nn.Module) -> Stage:
            bound = sequence.run.bind(slots_of(module, sequence.params), guards_of(module, sequence.params))
            if caches:
                return CachedKernelStage(bound, values, caches, results)
            return KernelStage(bound, values, results)

        self.steps.append(step)


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
    updates_per_node: int = 0,
) -> Plan:
    """Prepares the forward of a partitioned graph.

    Args:
        partition: regions of a canonical graph whose first input is the value that a call passes.
        proven: kernels by region signature; regions without one run on MLX.
        backend: runs the kernels.
        call_block: for a root's graph, how block ``i`` is called with ``(hidden state, cache)``.
        updates_per_node: let sequences write to the caches themselves, this many updates in one; 0 leaves updates
            to the caches. Such a forward needs caches with room.
    """
    return _Assembler(partition, proven, backend, call_block, updates_per_node).assemble()
