"""Graphs of one op, written down rather than traced: linear leaves, and the normaliser of the logits."""

from __future__ import annotations

import mlx.nn as nn

from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.dtypes import Affine, Dense, dtype_from_mlx
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.graph.graph import Graph, Node, Param
from mlx_autoperfect.graph.ops import Linear, LogSumExp
from mlx_autoperfect.graph.spec import check_graph
from mlx_autoperfect.graph.types import ArrayType, Size, WeightType


def capture_linear(module: nn.Module) -> Graph:
    """``x[L, K] -> y[L, N]`` for any number of rows ``L``.

    Raises:
        CaptureError: a dtype that this package has no use for.
    """
    weight = module["weight"]
    quantized = "scales" in module
    dtype = dtype_from_mlx((module["scales"] if quantized else weight).dtype)
    if dtype is None or not dtype.is_float:
        raise CaptureError(Reason.UNSUPPORTED_FORMAT, f"weights of type {weight.dtype}")
    rows, columns = weight.shape
    if quantized:
        columns = columns * 32 // module.bits
        type_ = WeightType(Affine(module.bits, module.group_size, dtype), (rows, columns))
        parts: tuple[str, ...] = ("weight", "scales", "biases")
    else:
        type_, parts = WeightType(Dense(dtype), (rows, columns)), ("weight",)
    params = [Param("w", type_, "", parts)]
    if "bias" in module:
        params.append(Param("b", ArrayType(dtype, (rows,)), "bias"))
    size = Size("L")
    node = Node(
        Linear(), ("x", *(p.value for p in params)), ("y",), (ArrayType(dtype, (size, rows)),),
        f"nn.{type(module).__name__}",
    )  # fmt: skip
    graph = Graph("linear", (("x", ArrayType(dtype, (size, columns))),), tuple(params), (), (node,), ("y",))
    return check_graph(graph)


def logsumexp_graph(root: Graph) -> Graph:
    """``logits[L, V] -> logsumexp[L, 1]`` for the logits that a root's graph yields."""
    logits = root.types[root.outputs[0]]
    assert isinstance(logits, ArrayType)
    size = Size("L")
    x = ArrayType(logits.dtype, (size, logits.shape[-1]))
    node = Node(LogSumExp(), ("x",), ("y",), (ArrayType(logits.dtype, (size, 1)),), "sampling")
    return check_graph(Graph("logsumexp", (("x", x),), (), (), (node,), ("y",)))
