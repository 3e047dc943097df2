"""The two interpreters agree op by op: MLX in float32 against float64 on NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_autoperfect.dtypes import Affine, DType
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Constant, Graph, Node, Param
from mlx_autoperfect.graph.on_float64 import TABLE as FLOAT64
from mlx_autoperfect.graph.on_float64 import dequantize, run_on_float64
from mlx_autoperfect.graph.on_mlx import TABLE as MLX
from mlx_autoperfect.graph.on_mlx import run_on_mlx
from mlx_autoperfect.graph.ops import BINARY, COMPARISONS, OPS, UNARY, OpClass
from mlx_autoperfect.graph.types import ArrayType, Size, WeightType, parse_type
from mlx_autoperfect.verify.judge import to_numpy

Array = NDArray[Any]
_POSITIVE = frozenset(["log", "sqrt", "rsqrt", "reciprocal", "log1p", "pow"])


def _draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _both(op: ops.Op, arrays: list[Array], params: dict[str, tuple[Any, Array]] | None = None) -> tuple[Array, Array]:
    """The op on both libraries; ``params`` go in after the inputs, by type and (dense) value."""
    kinds = {"float32": DType.F32, "int32": DType.I32, "uint32": DType.U32, "bool": DType.BOOL}
    inputs = tuple((f"a{i}", ArrayType(kinds[str(a.dtype)], a.shape)) for i, a in enumerate(arrays))
    names = tuple(name for name, _ in inputs)
    declared, lookup = [], {}
    for name, (type_, value) in (params or {}).items():
        stored = _stored(type_, value)
        declared.append(Param(name, type_, name, tuple(stored) if isinstance(type_, WeightType) else ()))
        lookup.update({f"{name}.{part}" if isinstance(type_, WeightType) else name: a for part, a in stored.items()})
    node = Node(op, (*names, *(p.value for p in declared)), ("y",), (ArrayType(DType.F32, ()),))
    graph = Graph("op", inputs, tuple(declared), (), (node,), ("y",))
    on_mlx = run_on_mlx(graph, [mx.array(a) for a in arrays], lookup)[0]
    exact = run_on_float64(graph, arrays, {key: to_numpy(a) for key, a in lookup.items()})[0]
    return to_numpy(on_mlx), exact


def _stored(type_: Any, value: Array) -> dict[str, mx.array]:
    if isinstance(type_, WeightType) and isinstance(type_.format, Affine):
        parts = mx.quantize(mx.array(value), group_size=type_.format.group, bits=type_.format.bits)
        return dict(zip(("weight", "scales", "biases"), parts, strict=True))
    return {"weight": mx.array(value)}


def _agree(pair: tuple[Array, Array], tolerance: float = 2e-5) -> None:
    got, exact = pair
    assert got.shape == exact.shape
    np.testing.assert_allclose(got.astype(np.float64), exact.astype(np.float64), rtol=tolerance, atol=tolerance)
    assert exact.size == 1 or np.ptp(exact.astype(np.float64)) > 0, "a constant result would prove nothing"


def test_both_tables_know_every_op_without_an_effect() -> None:
    pure = {op for op in OPS.values() if op.kind is not OpClass.EFFECT}
    assert set(MLX) == pure
    assert set(FLOAT64) == pure


@pytest.mark.parametrize("fn", sorted(UNARY))
def test_unary(fn: str) -> None:
    x = _draw(1, 3, 17)
    x = np.abs(x) + 0.1 if fn in _POSITIVE else x
    _agree(_both(ops.Unary(fn), [x > 0.3 if fn == "not" else x]))


@pytest.mark.parametrize("fn", sorted(BINARY))
def test_binary(fn: str) -> None:
    a, b = _draw(1, 3, 17), _draw(2, 17)
    if fn in _POSITIVE:
        a = np.abs(a) + 0.1
    if fn in COMPARISONS:
        a[0], a[1] = b, np.nextafter(b, np.float32(9))
    if fn in {"and", "or"}:
        a, b = a > 0, b > 0
    _agree(_both(ops.Binary(fn), [a, b]))


_X = _draw(3, 2, 5, 16)
_Q, _K, _V = _draw(4, 2, 6, 5, 8), _draw(5, 2, 2, 9, 8), _draw(6, 2, 2, 9, 4)
_CASES: dict[str, tuple[ops.Op, list[Array]]] = {
    "select": (ops.Select(), [_X > 0, _X, np.float32(-2) + 0 * _X[0]]),
    "silu": (ops.Silu(), [_X * 4]),
    "gelu-tanh": (ops.Gelu(True), [_X * 4]),
    "gelu-erf": (ops.Gelu(False), [_X * 4]),
    "swiglu": (ops.SwiGLU(), [_X, _draw(7, 2, 5, 16)]),
    "geglu-tanh": (ops.GeGLU(True), [_X, _draw(7, 2, 5, 16)]),
    "geglu-erf": (ops.GeGLU(False), [_X, _draw(7, 2, 5, 16)]),
    **{
        f"reduce-{fn}-{keep}": (ops.Reduce(fn, (0, 2), keep), [_X])
        for fn in ("sum", "max", "min", "prod")
        for keep in (False, True)
    },
    "rms_norm": (ops.RmsNorm(0.1), [_X]),
    "rms_norm-weight": (ops.RmsNorm(0.1), [_X, _draw(8, 16)]),
    "layer_norm": (ops.LayerNorm(0.1), [_X + 3]),
    "layer_norm-weight": (ops.LayerNorm(0.1), [_X + 3, _draw(8, 16)]),
    "layer_norm-weight-bias": (ops.LayerNorm(0.1), [_X + 3, _draw(8, 16), _draw(9, 16)]),
    "softmax": (ops.Softmax(True), [_X * 30]),
    "logsumexp": (ops.LogSumExp(), [_X * 30]),
    "attention": (ops.Attention(0.3, False), [_Q, _K, _V]),
    "attention-causal": (ops.Attention(0.3, True), [_Q, _K, _V]),
    "attention-causal-square": (ops.Attention(0.3, True), [_Q, _K[:, :, :5], _V[:, :, :5]]),
    "attention-bool-mask": (ops.Attention(0.3, False), [_Q, _K, _V, _draw(10, 5, 9) > -0.5]),
    "attention-added-mask": (ops.Attention(0.3, False), [_Q, _K, _V, _draw(10, 2, 1, 5, 9)]),
    "reshape": (ops.Reshape((2, 80)), [_X]),
    "transpose": (ops.Transpose((2, 0, 1)), [_X]),
    "broadcast": (ops.Broadcast((3, 2, 5, 16)), [_X]),
    "slice": (ops.Slice((0, 1, 2), (2, 4, 15), (1, 2, 3)), [_X]),
    "concat": (ops.Concat(2), [_X, _X[:, :, :3] * 2]),
}  # fmt: skip


@pytest.mark.parametrize("name", _CASES)
def test_op(name: str) -> None:
    op, arrays = _CASES[name]
    _agree(_both(op, arrays))


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("dims", [8, 16])
@pytest.mark.parametrize("offset", [0, 1, 4097, [3, 70]], ids=str)
@pytest.mark.parametrize("freqs", [False, True])
def test_rope(traditional: bool, dims: int, offset: Any, freqs: bool) -> None:
    table = [np.geomspace(1, 5000, dims // 2).astype(np.float32)] if freqs else []
    op = ops.Rope(dims, 0.0 if freqs else 1e4, 0.5, traditional)
    # Angles are rounded in float32: at position 4097 that is worth 2e-4.
    _agree(_both(op, [_draw(3, 2, 4, 5, 16), np.array(offset, np.int32), *table]), 1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_quantized(bits: int, group: int, bias: bool) -> None:
    params = {"w": (parse_type(f"w:q{bits}g{group}.f32[24,128]"), _draw(11, 24, 128))}
    params |= {"b": (parse_type("f32[24]"), _draw(12, 24))} if bias else {}
    _agree(_both(ops.Linear(), [_draw(13, 2, 5, 128)], params), 1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_dense(bias: bool) -> None:
    params = {"w": (parse_type("w:f32[24,128]"), _draw(11, 24, 128))}
    params |= {"b": (parse_type("f32[24]"), _draw(12, 24))} if bias else {}
    _agree(_both(ops.Linear(), [_draw(13, 2, 5, 128)], params), 1e-4)


@pytest.mark.parametrize("format_", ["f32", "q4g32.f32", "q8g64.f32"])
def test_embedding(format_: str) -> None:
    params = {"w": (parse_type(f"w:{format_}[24,128]"), _draw(11, 24, 128))}
    _agree(_both(ops.Embedding(), [np.array([[3, 0, 23, 3]], np.uint32)], params))


def test_dequantize_is_mlx_dequantize() -> None:
    parts = mx.quantize(mx.array(_draw(1, 6, 128)), group_size=64, bits=4)
    exact = dequantize(*(np.array(p) for p in parts), Affine(4, 64, DType.F32))
    np.testing.assert_allclose(np.array(mx.dequantize(*parts, group_size=64, bits=4)), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F32])
def test_cast_between_floats_does_not_round_in_the_oracle(dtype: DType) -> None:
    got, exact = _both(ops.Cast(dtype), [_draw(1, 40)])
    np.testing.assert_array_equal(exact, _draw(1, 40).astype(np.float64))
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=dtype.epsilon)


@pytest.mark.parametrize(
    ("dtype", "x"),
    [
        (DType.I32, np.array([0.4, -1.7, 2.5], np.float32)),
        (DType.F32, np.array([1, -5, 3], np.int32)),
        (DType.BOOL, np.array([0.0, 0.4, -2.0], np.float32)),
        (DType.F32, np.array([True, False, True])),
    ],
    ids=["float-int", "int-float", "float-bool", "bool-float"],
)
def test_cast_between_kinds(dtype: DType, x: Array) -> None:
    _agree(_both(ops.Cast(dtype), [x]))


def test_a_boolean_cast_to_float_counts() -> None:
    x = ("x", ArrayType(DType.F32, (4,)))
    zero = Constant("c", ArrayType(DType.F32, ()), (0.0,), ())
    nodes = (
        Node(ops.Binary("gt"), ("x", "c"), ("m",), (ArrayType(DType.BOOL, (4,)),)),
        Node(ops.Cast(DType.F32), ("m",), ("f",), (ArrayType(DType.F32, (4,)),)),
        Node(ops.Binary("add"), ("f", "f"), ("y",), (ArrayType(DType.F32, (4,)),)),
    )
    graph = Graph("count", (x,), (), (zero,), nodes, ("y",))
    values = np.array([1.0, -1.0, 2.0, 0.0], np.float32)
    assert run_on_mlx(graph, [mx.array(values)], {})[0].tolist() == [2.0, 0.0, 2.0, 0.0]
    assert run_on_float64(graph, [values], {})[0].astype(float).tolist() == [2.0, 0.0, 2.0, 0.0]


def test_symbols_are_bound_by_the_inputs() -> None:
    graph = Graph(
        "g", (("x", parse_type("f32[1,L,4]")),), (), (),
        (Node(ops.Reshape((Size("L", 2), 2)), ("x",), ("y",), (parse_type("f32[2*L,2]"),)),), ("y",),
    )  # fmt: skip
    for rows in (1, 3):
        assert run_on_float64(graph, [np.zeros((1, rows, 4))], {})[0].shape == (2 * rows, 2)


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 4), (2, 3, 4)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    graph = Graph("g", (("x", parse_type("f32[1,L,4]")),), (), (), (), ("x",))
    with pytest.raises(ValueError, match="expected"):
        run_on_float64(graph, [np.zeros(shape)], {})


def test_an_effect_that_nothing_answers_is_refused() -> None:
    type_ = parse_type("f32[1,L,4]")
    graph = Graph("g", (("x", type_),), (), (), (Node(ops.CallBlock(0), ("x",), ("y",), (type_,)),), ("y",))
    run: Callable[..., Any] = run_on_float64
    with pytest.raises(ValueError, match="call_block is an effect"):
        run(graph, [np.zeros((1, 2, 4))], {})
