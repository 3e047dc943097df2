"""A region: the part of a graph that one kernel will compute, as a graph of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from mlx_autoperfect.fusion.views import base_of, chain_of
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Constant, Graph, Node, Param
from mlx_autoperfect.graph.text import print_graph
from mlx_autoperfect.graph.types import Type, WeightType


class RegionKind(StrEnum):
    """What a region is built around."""

    ROWS = "rows"
    GEMM = "gemm"
    ATTENTION = "attention"
    STOCK = "stock"


@dataclass(frozen=True)
class Region:
    """One kernel's worth of a graph.

    Attributes:
        name: says the fusion (``rms_gate_up_swiglu``); for people, not part of the identity.
        kind: what it is built around.
        graph: the region alone, with canonical value names and no parameter paths: regions that
            compute the same have equal graphs, in any layer of any model.
        inputs: values of the parent graph that feed ``graph.inputs``, in order.
        params: parameters of the parent graph that feed ``graph.params``, in order.
        outputs: values of the parent graph that ``graph.outputs`` are, in order.
        nodes: outputs of the parent's nodes that the region covers (views excluded).
        signature: 16 hex digits over ops, every constant, shapes and dtypes.
    """

    name: str
    kind: RegionKind
    graph: Graph
    inputs: tuple[str, ...]
    params: tuple[Param, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    signature: str


_SHORT = {
    ops.RmsNorm: "rms", ops.LayerNorm: "ln", ops.Rope: "rope", ops.Attention: "attention", ops.SwiGLU: "swiglu",
    ops.GeGLU: "geglu", ops.Silu: "silu", ops.Gelu: "gelu", ops.Softmax: "softmax", ops.Embedding: "embedding",
}  # fmt: skip


def _weight_label(paths: list[str]) -> str:
    leaves = [path.rpartition(".")[2].removesuffix("_proj") for path in paths]
    return "".join(leaves) if all(len(leaf) == 1 for leaf in leaves) else "_".join(leaves)


def _name(graph: Graph, nodes: list[Node]) -> str:
    parts: list[str] = []
    weights = [graph.param_of[node.inputs[1]].path for node in nodes if isinstance(node.op, ops.Linear)]
    for node in nodes:
        if isinstance(node.op, ops.Linear):
            label = _weight_label(weights) or node.op.name
        elif isinstance(node.op, ops.Binary):
            operand = graph.types[node.inputs[1]]
            after_gemm = bool(weights) and node.op.fn == "add" and operand.shape == node.types[0].shape
            label = "residual" if after_gemm else node.op.fn
        else:
            label = _SHORT.get(type(node.op), getattr(node.op, "fn", node.op.name))
        if label not in parts:
            parts.append(label)
    return "_".join(parts)


def build_region(graph: Graph, members: Iterable[Node], kind: RegionKind, sinks: dict[str, str]) -> Region:
    """Cuts ``members`` out of ``graph``.

    Args:
        graph: the parent.
        members: compute nodes, in graph order.
        kind: what the region is built around.
        sinks: of the whole graph: value -> view of it that is stored in its place, because its only readers
            want that view.
    """
    compute = list(members)
    inside = {value for node in compute for value in node.outputs}
    produced = [value for node in compute for value in node.outputs]
    outputs = [sinks.get(v, v) for v in produced if _leaves(graph, v, {id(n) for n in compute})]

    needed: dict[str, None] = {}
    views: dict[str, Node] = {}
    # Views that another region hands out are memory to this one; its own are the tail it writes through.
    stored = frozenset(sinks.values())
    own = {sinks[value] for value in inside if value in sinks}
    for value in [v for node in compute for v in node.inputs] + outputs:
        for view in chain_of(graph, value, stored - own):
            views[view.output] = view
        base = base_of(graph, value, stored - own)
        if base not in inside:
            needed[base] = None
    names: dict[str, str] = {}
    # A table is data like any other to a kernel; only single numbers are written into it.
    single = {c.value for c in graph.constants if len(c.data) == 1}
    inputs = [v for v in needed if v not in graph.param_of and v not in single]
    params = [graph.param_of[v] for v in needed if v in graph.param_of]
    constants = [graph.constant_of[v] for v in needed if v in single]
    names.update((v, f"i{n}") for n, v in enumerate(inputs))
    names.update((p.value, f"w{n}") for n, p in enumerate(params))
    names.update((c.value, f"c{n}") for n, c in enumerate(constants))
    order = [n for n in graph.nodes if n.output in views or any(v in inside for v in n.outputs)]
    nodes: list[Node] = []
    for number, node in enumerate(order):
        outs = tuple(f"t{number}" if i == 0 else f"t{number}_{i}" for i in range(len(node.outputs)))
        names.update(zip(node.outputs, outs, strict=True))
        nodes.append(replace(node, inputs=tuple(names[v] for v in node.inputs), outputs=outs, origin=""))

    def type_of(value: str) -> Type:
        return graph.types[value]

    local = Graph(
        "region",
        tuple((names[v], type_of(v)) for v in inputs),
        tuple(
            Param(names[p.value], p.type, names[p.value], p.parts if isinstance(p.type, WeightType) else ())
            for p in params
        ),
        tuple(Constant(names[c.value], c.type, c.data, c.shape) for c in constants),
        tuple(nodes),
        tuple(names[v] for v in outputs),
    )
    return Region(
        _name(graph, compute), kind, local, tuple(inputs), tuple(params), tuple(outputs),
        tuple(node.output for node in compute),
        hashlib.sha256(print_graph(local, comments=False).encode()).hexdigest()[:16],
    )  # fmt: skip


def _leaves(graph: Graph, value: str, members: set[int]) -> bool:
    from mlx_autoperfect.fusion.views import escapes, readers

    return escapes(graph, value) or any(id(node) not in members for node, _ in readers(graph, value))
