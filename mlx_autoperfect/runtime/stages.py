"""The stages of a prepared forward: kernel sequences, stock pieces, effects.

A forward is a list of stages over a list of values. Stages are built once per module and regime; what
runs per call is this file and nothing else, so it stays free of searches, checks and formatting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_autoperfect.hookspecs import Bound

Values = list[Any]
# (values, symbol values, caches by block)
Stage = Callable[[Values, list[int], Any], None]


@dataclass(frozen=True, slots=True)
class KernelStage:
    """Runs a sequence of kernels as one node.

    Attributes:
        run: the prepared sequence, bound to the module's parameters.
        values: which values it reads.
        results: where its outputs go.
    """

    run: Bound
    values: tuple[int, ...]
    results: tuple[int, ...]

    def __call__(self, values: Values, symbols: list[int], _: Any) -> None:
        arrays = [values[i] for i in self.values]
        for index, array in zip(self.results, self.run(arrays, symbols), strict=True):
            values[index] = array


@dataclass(frozen=True, slots=True)
class CachedKernelStage:
    """A sequence that writes to caches itself.

    The buffers go in and come out again as new arrays; where nobody else holds them it is the same memory. ``symbols``
    are rows, offset and filled positions, as for every stage.
    """

    run: Bound
    values: tuple[int, ...]
    caches: tuple[int, ...]
    results: tuple[int, ...]

    def __call__(self, values: Values, symbols: list[int], caches: Any) -> None:
        arrays = [values[i] for i in self.values]
        for i in self.caches:
            arrays += (caches[i].keys, caches[i].values)
        made = iter(self.run(arrays, symbols))
        for index in self.results:
            values[index] = next(made)
        for i in self.caches:
            cache = caches[i]
            cache.keys, cache.values, cache.offset = next(made), next(made), symbols[2]


@dataclass(frozen=True, slots=True)
class StockStage:
    """Runs a piece of the graph with MLX's own operations."""

    run: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
    values: tuple[int, ...]
    params: tuple[tuple[Any, str], ...]
    results: tuple[int, ...]

    def __call__(self, values: Values, _: list[int], __: Any) -> None:
        arrays = [values[i] for i in self.values]
        params = [module[key] for module, key in self.params]
        for index, array in zip(self.results, self.run(arrays, params), strict=True):
            values[index] = array


@dataclass(frozen=True, slots=True)
class OffsetStage:
    """The cache's offset as an array, for pieces that MLX runs."""

    result: int

    def __call__(self, values: Values, symbols: list[int], _: Any) -> None:
        values[self.result] = mx.array(symbols[1], mx.int32)


@dataclass(frozen=True, slots=True)
class TableStage:
    """Supplies a constant table."""

    table: mx.array
    result: int

    def __call__(self, values: Values, _: list[int], __: Any) -> None:
        values[self.result] = self.table


@dataclass(frozen=True, slots=True)
class CacheStage:
    """Appends keys and values to cache ``index`` and fetches what it holds."""

    index: int
    values: tuple[int, int]
    results: tuple[int, int]

    def __call__(self, values: Values, _: list[int], caches: Any) -> None:
        keys, values_ = self.values
        fetched = caches[self.index].update_and_fetch(values[keys], values[values_])
        values[self.results[0]], values[self.results[1]] = fetched


@dataclass(frozen=True, slots=True)
class BlockStage:
    """Runs one transformer block as a module of its own."""

    call: Callable[[Any, Any], Any]
    index: int
    value: int
    result: int

    def __call__(self, values: Values, _: list[int], caches: Any) -> None:
        values[self.result] = self.call(values[self.value], caches[self.index])


@dataclass(frozen=True, slots=True)
class Forward:
    """A prepared forward of one module in one regime.

    Attributes:
        stages: in order.
        size: how many values there are.
        result: which value is returned.
    """

    stages: tuple[Stage, ...]
    size: int
    result: int

    def __call__(self, x: Any, symbols: list[int], caches: Any) -> Any:
        values: Values = [None] * self.size
        values[0] = x
        for stage in self.stages:
            stage(values, symbols, caches)
        return values[self.result]
