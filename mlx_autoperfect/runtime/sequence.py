"""Kernels, and the cache updates between them, prepared as one sequence: one node of MLX's graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_autoperfect.fusion.region import Region
from mlx_autoperfect.graph.graph import Graph, Node, Param
from mlx_autoperfect.graph.ops import CacheUpdate
from mlx_autoperfect.graph.types import ArrayType, Size
from mlx_autoperfect.hookspecs import Append, Backend, Launch, Sequencer, SequenceSpec, Slot
from mlx_autoperfect.kernel.abi import flatten
from mlx_autoperfect.kernel.ir import Kernel

# What every sequence is told at a call: rows of hidden state, positions in the cache before and after, and the
# positions that the cache has room for (0 where the sequence does not write to it).
SYMBOLS = ("L", "offset", "T", "C")


@dataclass(frozen=True)
class Proven:
    """A kernel that passed verification here, built."""

    kernel: Kernel
    executable: Any


@dataclass(frozen=True)
class KernelItem:
    """A region and the kernel that computes it."""

    region: Region
    proven: Proven


@dataclass(frozen=True)
class AppendItem:
    """A cache update that the sequence does itself."""

    node: Node

    @property
    def cache(self) -> int:
        """Which cache."""
        assert isinstance(self.node.op, CacheUpdate)
        return self.node.op.index


Item = KernelItem | AppendItem


@dataclass(frozen=True)
class PreparedSequence:
    """A sequence and what it reads and writes.

    Attributes:
        run: inputs are values, then keys and values of each cache, then parameters; outputs are results, then the
            updated keys and values of each cache.
        values: values of the graph that it reads.
        caches: caches that it updates, by number.
        params: parameters that it reads.
        results: values of the graph that it hands out.
    """

    run: Sequencer
    values: tuple[str, ...]
    caches: tuple[int, ...]
    params: tuple[Param, ...]
    results: tuple[str, ...]


def _slots(name: str, type_: Any, strided: bool = False) -> list[Slot]:
    return [Slot(name, array.dtype, array.shape, array.strided) for array in flatten(name, type_, strided)]


def _buffer_slots(item: AppendItem) -> list[Slot]:
    """The two buffers of a cache, whole."""
    found = []
    for part, type_ in zip(("keys", "values"), item.node.types, strict=True):
        assert isinstance(type_, ArrayType)
        batch, heads, _, width = type_.shape
        found.append(Slot(f"cache {item.cache} {part}", type_.dtype, (batch, heads, Size("C"), width), True))
    return found


class _Builder:
    def __init__(self, graph: Graph, items: Sequence[Item], wanted: set[str]) -> None:
        self.graph = graph
        self.items = items
        self.kernels = [item for item in items if isinstance(item, KernelItem)]
        self.appends = [item for item in items if isinstance(item, AppendItem)]
        made = [v for item in self.kernels for v in item.region.outputs]
        filled = [v for item in self.appends for v in item.node.outputs]
        self.scalars = {
            value
            for item in self.kernels
            for value, (local, _) in zip(item.region.inputs, item.region.graph.inputs, strict=True)
            if local in item.proven.kernel.scalars
        }
        read = [v for item in items for v in self.reads(item)]
        self.values = tuple(dict.fromkeys(v for v in read if v not in made and v not in filled))
        self.params = tuple({p.value: p for item in self.kernels for p in item.region.params}.values())
        self.results = tuple(v for v in made if v in wanted)
        self.temporaries = tuple(v for v in made if v not in wanted)
        self.filled = filled

    def reads(self, item: Item) -> list[str]:
        """Values that an item reads as arrays."""
        if isinstance(item, AppendItem):
            return list(item.node.inputs)
        return [v for v in item.region.inputs if v not in self.scalars]

    def strided(self) -> set[str]:
        return {
            value
            for item in self.kernels
            for value, operand in zip(self.reads(item), item.proven.kernel.inputs, strict=False)
            if operand.strided
        }

    def spec(self) -> SequenceSpec:
        strided = self.strided()
        inputs: list[Slot] = []
        number: dict[str, int] = {}
        for value in self.values:
            number[value] = len(inputs)
            inputs += _slots(value, self.graph.types[value], value in strided)
        first_cache = len(inputs)
        buffers = [slot for item in self.appends for slot in _buffer_slots(item)]
        inputs += buffers
        for param in self.params:
            number[param.value] = len(inputs)
            inputs += _slots(param.path, param.type)
        after = [*self.results, *(slot.name for slot in buffers), *self.temporaries, *self.filled]
        number.update((value, len(inputs) + i) for i, value in enumerate(after))
        launches: list[Launch | Append] = []
        appended = 0
        for item in self.items:
            if isinstance(item, KernelItem):
                launches.append(self.launch(item, number))
                continue
            for source, target in zip(item.node.inputs, item.node.outputs, strict=True):
                view = _slots(target, self.graph.types[target])[0]
                output = len(self.results) + appended
                launches.append(Append(number[source], first_cache + appended, output, view))
                appended += 1
        return SequenceSpec(
            tuple(launches),
            tuple(inputs),
            (*(slot for v in self.results for slot in _slots(v, self.graph.types[v])), *buffers),
            tuple(slot for v in self.temporaries for slot in _slots(v, self.graph.types[v])),
            SYMBOLS,
        )

    def launch(self, item: KernelItem, number: dict[str, int]) -> Launch:
        kernel = item.proven.kernel
        sources = [*self.reads(item), *(p.value for p in item.region.params)]
        refs = [
            number[value] + part
            for value, operand in zip(sources, kernel.inputs, strict=True)
            for part in range(len(flatten(operand.name, operand.type)))
        ]
        return Launch(item.proven.executable, tuple(refs), tuple(number[v] for v in item.region.outputs))


def prepare(graph: Graph, items: Sequence[Item], wanted: set[str], backend: Backend) -> PreparedSequence:
    """Prepares ``items``, in order, as one sequence that hands out the ``wanted`` values."""
    builder = _Builder(graph, items, wanted)
    caches = tuple(item.cache for item in builder.appends)
    return PreparedSequence(backend.sequence(builder.spec()), builder.values, caches, builder.params, builder.results)
