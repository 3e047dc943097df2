"""The one driver that applies tables of rewrites until nothing matches."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.spec import check_graph
from mlx_autoperfect.passes.patterns import match
from mlx_autoperfect.passes.rules import TABLES, Rule

# A rule that undoes another would loop; no honest sequence of rewrites is this long.
_MAX_REWRITES_PER_NODE = 20


@dataclass(frozen=True)
class Applied:
    """One rewrite that happened: the rule and the value it produced anew."""

    table: str
    rule: str
    value: str


def _substitute(graph: Graph, old: str, new: str) -> Graph:
    """``graph`` with every use of ``old`` reading ``new``; the producer of ``old`` is dropped."""

    def rename(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new if value == old else value for value in values)

    nodes = tuple(replace(node, inputs=rename(node.inputs)) for node in graph.nodes if old not in node.outputs)
    return replace(graph, nodes=nodes, outputs=rename(graph.outputs))


def _apply(graph: Graph, node: Node, rule: Rule) -> Graph | None:
    bound = match(graph, rule.pattern, node)
    if bound is None or not rule.when(graph, node, bound):
        return None
    replacement = rule.build(bound)
    if isinstance(replacement, str):
        if node.output in graph.outputs:
            return None
        return _substitute(graph, node.output, replacement).without_dead_nodes()
    op, inputs = replacement
    new = replace(node, op=op, inputs=inputs)
    if new == node:
        return None
    nodes = tuple(new if other is node else other for other in graph.nodes)
    return replace(graph, nodes=nodes).without_dead_nodes()


def _first_rewrite(graph: Graph, rules: tuple[Rule, ...]) -> tuple[Graph, str, str] | None:
    for node in graph.nodes:
        for rule in rules:
            after = _apply(graph, node, rule)
            if after is not None:
                return after, rule.name, node.output
    return None


def canonicalize(graph: Graph) -> tuple[Graph, tuple[Applied, ...]]:
    """Applies the tables in turn until none of their rules matches; the graph is checked after each rewrite.

    Returns:
        The canonical graph and what was rewritten, in order.
    """
    applied: list[Applied] = []
    limit = _MAX_REWRITES_PER_NODE * max(1, len(graph.nodes))
    while len(applied) < limit:
        for table, rules in TABLES:
            step = _first_rewrite(graph, rules)
            if step is not None:
                graph, rule, value = step
                check_graph(graph)
                applied.append(Applied(table, rule, value))
                break
        else:
            break
    return graph, tuple(applied)
