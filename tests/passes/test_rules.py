"""One test per rewrite rule, on what real MLX functions trace to: same values after; near misses stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.activations import swiglu

from mlx_autoperfect.capture.lift import lift
from mlx_autoperfect.capture.trace import trace
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph
from mlx_autoperfect.graph.on_float64 import run_on_float64
from mlx_autoperfect.graph.spec import check_graph
from mlx_autoperfect.graph.text import parse_graph
from mlx_autoperfect.passes.driver import canonicalize
from mlx_autoperfect.passes.rules import TABLES

WIDTH = 24
Function = Callable[..., mx.array]


def graph_of(fn: Function, *shapes: tuple[int, ...], dtype: Any = mx.float32) -> Graph:
    """What ``fn`` traces to on inputs of these shapes."""
    arrays = [mx.zeros(shape, dtype) for shape in shapes]

    def run(_: Any, values: Any) -> list[mx.array]:
        result = fn(*values)
        return list(result) if isinstance(result, list | tuple) else [result]

    raw = trace(nn.Module(), run, arrays)
    return check_graph(lift(raw, "fn", tuple(f"a{i}" for i in range(len(arrays)))))


def same_values(before: Graph, after: Graph, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(t.shape) for _, t in before.inputs]
    for a, b in zip(run_on_float64(before, inputs, {}), run_on_float64(after, inputs, {}), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


X, W, ROW = (2, 5, WIDTH), (WIDTH,), (2, 5, 1)


def _rms(x: mx.array, eps: float = 1e-5) -> mx.array:
    return x * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + eps)


def _gelu_by_hand(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@dataclass(frozen=True)
class Idiom:
    """A function, the shapes it is traced on, the rules that must fire, and the ops that must be left."""

    fn: Function
    shapes: tuple[tuple[int, ...], ...]
    rules: set[str]
    left: tuple[ops.Op, ...]


NORM = ops.RmsNorm(float(np.float32(1e-5)))
IDIOMS: dict[str, Idiom] = {
    "nn.silu": Idiom(nn.silu, (X,), {"silu"}, (ops.Silu(),)),
    "x * sigmoid(x)": Idiom(lambda x: x * mx.sigmoid(x), (X,), {"silu"}, (ops.Silu(),)),
    "sigmoid(x) * x": Idiom(lambda x: mx.sigmoid(x) * x, (X,), {"silu"}, (ops.Silu(),)),
    "nn.gelu": Idiom(nn.gelu, (X,), {"gelu_erf"}, (ops.Gelu(False),)),
    "nn.gelu_approx": Idiom(nn.gelu_approx, (X,), {"gelu_tanh"}, (ops.Gelu(True),)),
    "gelu by hand": Idiom(_gelu_by_hand, (X,), {"gelu_tanh"}, (ops.Gelu(True),)),
    "mlx_lm swiglu": Idiom(swiglu, (X, X), {"silu", "swiglu"}, (ops.SwiGLU(),)),
    "up * silu(gate)": Idiom(lambda g, u: u * nn.silu(g), (X, X), {"silu", "swiglu"}, (ops.SwiGLU(),)),
    "geglu": Idiom(lambda g, u: nn.gelu(g) * u, (X, X), {"gelu_erf", "geglu_erf"}, (ops.GeGLU(False),)),
    "geglu tanh": Idiom(
        lambda g, u: u * nn.gelu_approx(g), (X, X), {"gelu_tanh", "geglu_tanh"}, (ops.GeGLU(True),)
    ),
    "rms_norm by hand": Idiom(_rms, (X,), {"rms_norm"}, (NORM,)),
    "rms_norm by division": Idiom(
        lambda x: x * mx.rsqrt(mx.sum(mx.square(x), -1, keepdims=True) / WIDTH + 1e-5), (X,), {"rms_norm"}, (NORM,)
    ),
    "rms_norm by hand, weight": Idiom(lambda x, w: _rms(x) * w, (X, W), {"rms_norm", "rms_norm_weight"}, (NORM,)),
    "weight first": Idiom(lambda x, w: w * _rms(x), (X, W), {"rms_norm", "rms_norm_weight"}, (NORM,)),
    "mx.fast.rms_norm * weight": Idiom(
        lambda x, w: mx.fast.rms_norm(x, None, 1e-5) * w, (X, W), {"rms_norm_weight"}, (ops.RmsNorm(1e-5),)
    ),
    "1 + w": Idiom(
        lambda x, w: mx.fast.rms_norm(x, 1.0 + w, 1e-5), (X, W), set(), (ops.Binary("add"), ops.RmsNorm(1e-5))
    ),
    "1 + w by hand": Idiom(
        lambda x, w: _rms(x) * (1 + w), (X, W), {"rms_norm", "rms_norm_weight"}, (ops.Binary("add"), NORM)
    ),
    "two norms": Idiom(lambda x: _rms(_rms(x)), (X,), {"rms_norm"}, (NORM, NORM)),
    "reshape to the same": Idiom(lambda x: mx.exp(x.reshape(2, 5, -1)), (X,), set(), (ops.Unary("exp"),)),
    "reshape of a reshape": Idiom(
        lambda x: mx.exp(mx.unflatten(x, 2, (4, 6)).reshape(2, 5, 24)), (X,), set(),
        (ops.Reshape((2, 5, 4, 6)), ops.Reshape(X), ops.Unary("exp")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IDIOMS)
def test_an_idiom_becomes_its_op(name: str) -> None:
    idiom = IDIOMS[name]
    before = graph_of(idiom.fn, *idiom.shapes)
    after, applied = canonicalize(before)
    found = {a.rule for a in applied if a.table == "idioms"}
    assert found == idiom.rules
    views = (ops.Broadcast,)
    assert tuple(n.op for n in after.nodes if not isinstance(n.op, views)) == idiom.left
    # Constants of the traced formula are rounded to float32, those of the op are not.
    same_values(before, after, 1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["nn.gelu", "nn.gelu_approx", "nn.silu", "mlx_lm swiglu"])
def test_idioms_are_found_in_16_bit(name: str, dtype: Any) -> None:
    """Constants are rounded to the activation's dtype there."""
    idiom = IDIOMS[name]
    after, applied = canonicalize(graph_of(idiom.fn, *idiom.shapes, dtype=dtype))
    assert {a.rule for a in applied if a.table == "idioms"} == idiom.rules
    assert tuple(n.op for n in after.nodes) == idiom.left


# Functions that look like an idiom and are not: the op that must not appear.
NEAR_MISSES: dict[str, tuple[Function, tuple[tuple[int, ...], ...], type[ops.Op]]] = {
    "silu of another value": (lambda x, y: x * mx.sigmoid(y), (X, X), ops.Silu),
    "silu with a slope": (lambda x: x * mx.sigmoid(1.702 * x), (X,), ops.Silu),
    "x + sigmoid(x)": (lambda x: x + mx.sigmoid(x), (X,), ops.Silu),
    "swiglu with a shared silu": (lambda g, u: [nn.silu(g) * u, nn.silu(g)], (X, X), ops.SwiGLU),
    "gelu: another constant": (
        lambda x: 0.5 * x * (1 + mx.tanh(0.8 * (x + 0.044715 * x**3))), (X,), ops.Gelu
    ),
    "gelu: another cubic": (
        lambda x: 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.05 * x**3))), (X,), ops.Gelu
    ),
    "gelu: another power": (
        lambda x: 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2))), (X,), ops.Gelu
    ),
    "gelu: another value inside": (
        lambda x, y: 0.5 * y * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), (X, X), ops.Gelu
    ),
    "gelu: erf without a root": (lambda x: x * (1 + mx.erf(x / 2)) / 2, (X,), ops.Gelu),
    "gelu: twice as large": (lambda x: x * (1 + mx.erf(x / math.sqrt(2))), (X,), ops.Gelu),
    "gelu: one minus": (lambda x: x * (1 - mx.erf(x / math.sqrt(2))) / 2, (X,), ops.Gelu),
    "quick gelu": (nn.gelu_fast_approx, (X,), ops.Gelu),
    "norm over another axis": (
        lambda x: x * mx.rsqrt(mx.mean(mx.square(x), axis=1, keepdims=True) + 1e-5), (X,), ops.RmsNorm
    ),
    "norm over two axes": (
        lambda x: x * mx.rsqrt(mx.mean(mx.square(x), axis=(1, 2), keepdims=True) + 1e-5), (X,), ops.RmsNorm
    ),
    "norm of another width": (
        lambda x: x * mx.rsqrt(mx.sum(mx.square(x), -1, keepdims=True) / (WIDTH - 1) + 1e-5), (X,), ops.RmsNorm
    ),
    "norm of a sum": (
        lambda x: x * mx.rsqrt(mx.sum(mx.square(x), -1, keepdims=True) + 1e-5), (X,), ops.RmsNorm
    ),
    "norm by the largest": (
        lambda x: x * mx.rsqrt(mx.max(mx.square(x), -1, keepdims=True) / WIDTH + 1e-5), (X,), ops.RmsNorm
    ),
    "norm of another value": (
        lambda x, y: y * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + 1e-5), (X, X), ops.RmsNorm
    ),
    "norm with a root": (
        lambda x: x * mx.sqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + 1e-5), (X,), ops.RmsNorm
    ),
    "norm whose eps is an array": (
        lambda x, e: x * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + e), (X, ROW), ops.RmsNorm
    ),
    "norm whose squares are used": (
        lambda x: (lambda s: [x * mx.rsqrt(mx.mean(s, -1, keepdims=True) + 1e-5), s])(mx.square(x)), (X,), ops.RmsNorm
    ),
    "norm whose scale is used": (
        lambda x: (lambda s: [x * s, s])(mx.rsqrt(mx.mean(mx.square(x), -1, keepdims=True) + 1e-5)), (X,), ops.RmsNorm
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays_as_it_is(name: str) -> None:
    fn, shapes, op = NEAR_MISSES[name]
    before = graph_of(fn, *shapes)
    after, _ = canonicalize(before)
    assert not any(isinstance(node.op, op) for node in after.nodes)
    same_values(before, after, 1e-12)


WEIGHT_MISSES: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "one scale per row": (lambda x, w: mx.fast.rms_norm(x, None, 1e-5) * w, (X, ROW)),
    "a whole array": (lambda x, w: mx.fast.rms_norm(x, None, 1e-5) * w, (X, X)),
    "a scalar": (lambda x: mx.fast.rms_norm(x, None, 1e-5) * 3.0, (X,)),
}


@pytest.mark.parametrize("name", WEIGHT_MISSES)
def test_only_a_row_is_the_weight_of_a_norm(name: str) -> None:
    fn, shapes = WEIGHT_MISSES[name]
    before = graph_of(fn, *shapes)
    after, _ = canonicalize(before)
    assert [len(n.inputs) for n in after.nodes if isinstance(n.op, ops.RmsNorm)] == [1]
    same_values(before, after, 1e-12)


def test_a_second_weight_is_not_lost() -> None:
    before = graph_of(lambda x, w, v: mx.fast.rms_norm(x, w, 1e-5) * v, X, W, W)
    after, _ = canonicalize(before)
    same_values(before, after, 1e-12)
    assert len(after.inputs) == 3
    assert {"a1", "a2"} <= {value for node in after.nodes for value in node.inputs}


@pytest.mark.parametrize("fn", ["add", "multiply", "subtract", "divide", "maximum", "power"])
def test_an_operand_loses_its_broadcast(fn: str) -> None:
    before = graph_of(lambda x, w: getattr(mx, fn)(mx.abs(x) + 1, w), X, W)
    assert any(isinstance(node.op, ops.Broadcast) for node in before.nodes)
    after, applied = canonicalize(before)
    assert any(a.rule.endswith("of_broadcast") for a in applied)
    assert not any(isinstance(node.op, ops.Broadcast) for node in after.nodes)
    assert after.nodes[-1].inputs[1] == "a1"
    same_values(before, after, 1e-12)


def test_a_broadcast_that_makes_the_shape_stays() -> None:
    before = graph_of(lambda x, y: x + y, (2, 1, WIDTH), (1, 5, WIDTH))
    after, _ = canonicalize(before)
    assert after.types[after.outputs[0]].shape == X
    same_values(before, after, 1e-12)


def test_a_rewrite_never_removes_an_output() -> None:
    before = graph_of(lambda x: [mx.exp(x).reshape(2, 5, WIDTH), mx.exp(x)], X)
    after, _ = canonicalize(before)
    same_values(before, after, 1e-12)
    assert len(after.outputs) == 2


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("drop_cast", "%y: f16[2,L,8] = cast(%x) {dtype=f16}"),
        ("drop_reshape", "%y: f16[2,L,8] = reshape(%x) {shape=(2 L 8)}"),
        ("drop_broadcast", "%y: f16[2,L,8] = broadcast(%x) {shape=(2 L 8)}"),
    ],
)
def test_an_op_that_changes_nothing_goes(rule: str, line: str) -> None:
    text = f"graph g\n in %x: f16[2,L,8]\n {line}\n %z: f16[2,L,8] = silu(%y)\n out %z"
    after, applied = canonicalize(parse_graph(text))
    assert [a.rule for a in applied] == [rule]
    assert [(n.op, n.inputs) for n in after.nodes] == [(ops.Silu(), ("x",))]


@pytest.mark.parametrize(
    "line",
    [
        "%y: bf16[2,L,8] = cast(%x) {dtype=bf16}",
        "%y: f16[2,L,2,4] = reshape(%x) {shape=(2 L 2 4)}",
        "%y: f16[3,2,L,8] = broadcast(%x) {shape=(3 2 L 8)}",
    ],
)
def test_an_op_that_changes_the_type_stays(line: str) -> None:
    type_ = line.split()[1]
    graph = parse_graph(f"graph g\n in %x: f16[2,L,8]\n {line}\n %z: {type_} = silu(%y)\n out %z")
    assert canonicalize(graph) == (graph, ())


def test_every_rule_is_tried_by_a_test() -> None:
    """A new row of a table needs its row here."""
    fired: set[str] = set()
    for idiom in IDIOMS.values():
        fired |= {a.rule for a in canonicalize(graph_of(idiom.fn, *idiom.shapes))[1]}
    names = {rule.name for _, rules in TABLES for rule in rules}
    broadcasts = {f"{fn}_of_broadcast" for fn in ops.BINARY}
    assert names - broadcasts <= fired | {"drop_reshape", "drop_cast", "drop_broadcast"}
