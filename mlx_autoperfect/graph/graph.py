"""The graph: an immutable list of SSA nodes with typed values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from mlx_autoperfect.graph.ops import Op
from mlx_autoperfect.graph.types import Type


@dataclass(frozen=True)
class Param:
    """A parameter of the module: its dotted ``path`` and, for a matrix, the arrays stored under it.

    ``path`` of a plain array is the parameter's own (``norm.weight``); that of a weight matrix is its
    module's (``mlp.up_proj``), with ``parts`` naming the arrays below it in kernel order.
    """

    value: str
    type: Type
    path: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A constant array that the trace met (a scalar, a table of frequencies)."""

    value: str
    type: Type
    data: tuple[float, ...]
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        return np.asarray(self.data, dtype=np.float64).reshape(self.shape)


@dataclass(frozen=True)
class Node:
    """One operation: ``outputs = op(*inputs)``.

    Attributes:
        origin: where it came from (``nn.QuantizedLinear mlp.up_proj``); a comment, not semantics.
    """

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[Type, ...]
    origin: str = field(default="", compare=False)

    @property
    def output(self) -> str:
        return self.outputs[0]


@dataclass(frozen=True)
class Graph:
    """A program over named values.

    Attributes:
        name: what was captured, for people (``model.layers.*``).
        inputs: values given at run time, in call order, with their types.
        params: parameters bound by path.
        constants: constant arrays.
        nodes: operations in an order in which every value is defined before use.
        outputs: values returned.
    """

    name: str
    inputs: tuple[tuple[str, Type], ...]
    params: tuple[Param, ...]
    constants: tuple[Constant, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def types(self) -> Mapping[str, Type]:
        """Type of every value."""
        table: dict[str, Type] = dict(self.inputs)
        table.update((p.value, p.type) for p in self.params)
        table.update((c.value, c.type) for c in self.constants)
        for node in self.nodes:
            table.update(zip(node.outputs, node.types, strict=True))
        return table

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that defines a value; absent for inputs, parameters and constants."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read a value, each once, in order."""
        table: dict[str, list[Node]] = {value: [] for value in self.types}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                table[value].append(node)
        return {value: tuple(nodes) for value, nodes in table.items()}

    @cached_property
    def param_of(self) -> Mapping[str, Param]:
        return {p.value: p for p in self.params}

    @cached_property
    def constant_of(self) -> Mapping[str, Constant]:
        return {c.value: c for c in self.constants}

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the text form without comments: equal graphs hash equally."""
        from mlx_autoperfect.graph.text import print_graph

        return hashlib.sha256(print_graph(self, comments=False).encode()).hexdigest()

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        """The graph with other nodes, less the parameters and constants that nothing reads any more."""
        kept = tuple(nodes)
        used = {value for node in kept for value in node.inputs} | set(self.outputs)
        return replace(
            self,
            nodes=kept,
            params=tuple(p for p in self.params if p.value in used),
            constants=tuple(c for c in self.constants if c.value in used),
        )

    def without_dead_nodes(self) -> Graph:
        """The graph less the nodes that no output needs; effects stay."""
        from mlx_autoperfect.graph.ops import OpClass

        live = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node.op.kind is OpClass.EFFECT or any(value in live for value in node.outputs):
                kept.append(node)
                live.update(node.inputs)
        return self.with_nodes(reversed(kept))
