"""Raw primitives become the op that they are: values of the lifted graph equal the function's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_autoperfect.capture.lift import lift
from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.capture.trace import trace
from mlx_autoperfect.graph.on_float64 import run_on_float64
from mlx_autoperfect.graph.on_mlx import run_on_mlx
from mlx_autoperfect.graph.spec import check_graph
from tests.models import same_bits

X = mx.array(np.random.default_rng(0).uniform(0.3, 2.0, (2, 4, 6)).astype(np.float32))

FUNCTIONS: dict[str, Callable[[mx.array], Any]] = {
    **{
        name: getattr(mx, name)
        for name in (
            [
                "negative",
                "exp",
                "log",
                "tanh",
                "erf",
                "sigmoid",
                "square",
                "abs",
                "sin",
                "cos",
                "log1p",
                "expm1",
                "sqrt",
                "rsqrt",
                "reciprocal",
                "log2",
                "log10",
            ]
        )
    },
    "clip": lambda x: mx.clip(x, 0.5, 1.5),
    "where": lambda x: mx.where(x > 1, x, -x),
    "and": lambda x: mx.where(mx.logical_and(x > 0.5, x <= 1.5), x, 0.0),
    "or": lambda x: mx.where(mx.logical_or(x < 0.5, mx.logical_not(x < 1.5)), x, 0.0),
    "equal": lambda x: mx.where(x == x, x, 0.0),
    "logaddexp": lambda x: mx.logaddexp(x, 1 - x),
    "mean": lambda x: mx.mean(x, axis=1),
    "var": lambda x: mx.var(x, axis=-1, keepdims=True),
    "min": lambda x: mx.min(x, axis=(0, 1)),
    "prod": lambda x: mx.prod(x, axis=0),
    "softmax": lambda x: mx.softmax(x * 9, axis=-1),
    "softmax over another axis": lambda x: mx.softmax(x * 9, axis=0),
    "logsumexp": lambda x: mx.logsumexp(x, axis=-1, keepdims=True),
    "flatten": lambda x: mx.flatten(x, 0, 1) * 2,
    "unflatten": lambda x: mx.unflatten(x, -1, (2, 3)) * 2,
    "swapaxes": lambda x: x.swapaxes(0, 2) + 1,
    "split": lambda x: mx.split(x, 3, axis=-1)[1] * 2,
    "slice": lambda x: x[:, 1:4:2, ::-1] * 2,
    "one row": lambda x: x[:, -1, :] * 2,
    "concatenate": lambda x: mx.concatenate([x, x * 2], axis=1),
    "stack": lambda x: mx.stack([x, x * 2], axis=1),
    "cast": lambda x: (x.astype(mx.int32) + 1).astype(mx.float32),
    "count": lambda x: (x > 1).astype(mx.float32) + (x > 0.5).astype(mx.float32),
    "any": lambda x: mx.any(x > 1.9, axis=-1).astype(mx.float32),
    "power": lambda x: x**3,
    "power of an integer": lambda x: mx.power(2.0, x),
    "floor": mx.floor,
    "cumsum": lambda x: mx.cumsum(x, axis=1),
    "sort": lambda x: mx.sort(x, axis=1),
    "take": lambda x: x[:, mx.array([2, 0])],
    "matmul": lambda x: x @ x.swapaxes(1, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lifted_graph_has_the_values_of_its_function_or_is_refused(name: str) -> None:
    fn = FUNCTIONS[name]
    try:
        graph = check_graph(lift(trace(nn.Module(), lambda _, a: [fn(a[0])], [X]), name, ("x",)))
    except CaptureError as error:
        assert error.failure.reason == "UNSUPPORTED_PRIMITIVE"
        assert name in {"floor", "cumsum", "sort", "take", "matmul", "any", "slice", "split", "logsumexp",
                        "softmax over another axis", "log2", "log10"}, str(error)  # fmt: skip
        return
    assert same_bits(run_on_mlx(graph, [X], {})[0], fn(X))
    exact = run_on_float64(graph, [np.array(X)], {})[0].astype(np.float64)
    np.testing.assert_allclose(exact, np.array(fn(X), np.float64), rtol=1e-4, atol=1e-5)
