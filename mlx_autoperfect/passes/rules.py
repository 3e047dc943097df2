"""The tables of rewrites. A new idiom is one row here and one test.

A row says what to find, what to put there, and (``when``) which facts about the graph must hold
beyond the shape of the pattern. Rules never look at the names of modules or attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt

from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.types import ArrayType
from mlx_autoperfect.passes.patterns import Any_, Bindings, Const, Match_, kind, op

Replacement = tuple[ops.Op, tuple[str, ...]]


@dataclass(frozen=True)
class Rule:
    """``pattern`` becomes ``build(bindings)``: an op with inputs, or the name of an existing value."""

    name: str
    pattern: Match_
    build: Callable[[Bindings], Replacement | str]
    when: Callable[[Graph, Node, Bindings], bool] = lambda graph, node, bound: True


def _unary(fn: str, x: object) -> Match_:
    return op(ops.Unary(fn), x)  # type: ignore[arg-type]


def _binary(fn: str, a: object, b: object) -> Match_:
    return op(ops.Binary(fn), a, b)  # type: ignore[arg-type]


X, Y = Any_("x"), Any_("y")


def _same_type(graph: Graph, node: Node, bound: Bindings) -> bool:
    """The result is what the replaced value was: same shape, same dtype."""
    return graph.types[bound.values["x"]] == node.types[0]


def _rows(graph: Graph, node: Node, bound: Bindings) -> bool:
    """The pattern reduces over the last axis of x and divides by its width."""
    x = graph.types[bound.values["x"]]
    reduce_ = bound.ops["reduce"]
    assert isinstance(reduce_, ops.Reduce) and isinstance(x, ArrayType)
    width = x.shape[-1]
    inverse = bound.scalars.get("inverse")
    return (
        reduce_.fn == "sum"
        and reduce_.axes == (len(x.shape) - 1,)
        and isinstance(width, int)
        and inverse is not None
        and (abs(inverse * width - 1) < 1e-5 or abs(inverse - width) < 0.5)
    )


def _weight_of_rows(graph: Graph, node: Node, bound: Bindings) -> bool:
    return graph.types[bound.values["y"]].shape == graph.types[bound.values["x"]].shape[-1:]


def _through_broadcast(graph: Graph, node: Node, bound: Bindings) -> bool:
    """Dropping the broadcast leaves shape and dtype of the result as they are."""
    a, b = graph.types[bound.values["x"]], graph.types[bound.values["y"]]
    return a.shape == node.types[0].shape and len(b.shape) <= len(a.shape)


def _of_both(made: ops.Op) -> Callable[[Bindings], Replacement | str]:
    """Builds ``made(x, y)``."""
    return lambda m: (made, (m.values["x"], m.values["y"]))


_GELU_TANH_INNER = _binary(
    "mul", Const(sqrt(2 / pi)), _binary("add", X, _binary("mul", Const(0.044715), _binary("pow", X, Const(3.0))))
)
_GELU_TANH = _binary("add", Const(1.0), _unary("tanh", _GELU_TANH_INNER))
_GELU_ERF = _binary("add", Const(1.0), _unary("erf", _binary("div", X, Const(sqrt(2.0)))))
_VARIANCE = kind(ops.Reduce, _unary("square", X), name="reduce")


def _inverse_rms(mean: Match_) -> Match_:
    return _unary("rsqrt", _binary("add", mean, Const(name="eps")))


_MEAN_SQUARES = (
    _binary("mul", _VARIANCE, Const(name="inverse")),
    _binary("div", _VARIANCE, Const(name="inverse")),
)

NORMALIZE: tuple[Rule, ...] = (
    Rule("drop_reshape", kind(ops.Reshape, X), lambda m: m.values["x"], _same_type),
    Rule("drop_broadcast", kind(ops.Broadcast, X), lambda m: m.values["x"], _same_type),
    Rule("drop_cast", kind(ops.Cast, X), lambda m: m.values["x"], _same_type),
    *(
        Rule(f"{fn}_of_broadcast", _binary(fn, X, kind(ops.Broadcast, Y)), _of_both(ops.Binary(fn)), _through_broadcast)
        for fn in sorted(ops.BINARY)
    ),
)

IDIOMS: tuple[Rule, ...] = (
    Rule("silu", _binary("mul", X, _unary("sigmoid", X)), lambda m: (ops.Silu(), (m.values["x"],))),
    Rule(
        "gelu_tanh",
        _binary("mul", _binary("mul", Const(0.5), X), _GELU_TANH),
        lambda m: (ops.Gelu(tanh=True), (m.values["x"],)),
    ),
    Rule(
        "gelu_erf",
        _binary("div", _binary("mul", X, _GELU_ERF), Const(2.0)),
        lambda m: (ops.Gelu(tanh=False), (m.values["x"],)),
    ),
    Rule("swiglu", _binary("mul", kind(ops.Silu, X), Y), lambda m: (ops.SwiGLU(), (m.values["x"], m.values["y"]))),
    *(
        Rule(
            f"geglu_{'tanh' if tanh else 'erf'}",
            _binary("mul", op(ops.Gelu(tanh), X), Y),
            _of_both(ops.GeGLU(tanh)),
        )
        for tanh in (False, True)
    ),
    *(
        Rule(
            "rms_norm",
            _binary("mul", X, _inverse_rms(mean)),
            lambda m: (ops.RmsNorm(m.scalars["eps"]), (m.values["x"],)),
            _rows,
        )
        for mean in _MEAN_SQUARES
    ),
    Rule(
        "rms_norm_weight",
        _binary("mul", kind(ops.RmsNorm, X, name="norm"), Y),
        lambda m: (m.ops["norm"], (m.values["x"], m.values["y"])),
        _weight_of_rows,
    ),
)

TABLES: tuple[tuple[str, tuple[Rule, ...]], ...] = (("normalize", NORMALIZE), ("idioms", IDIOMS))
