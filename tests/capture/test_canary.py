"""A canary over ``mx.export_function``: the experimental events that capture is built on, exactly as it reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_autoperfect.capture.primitives import TABLE

Event = dict[str, Any]
X = mx.ones((2, 4, 3))


def _events(fn: Callable[..., Any], *arrays: mx.array, **named: mx.array) -> list[Event]:
    events: list[Event] = []

    def listed(*values: mx.array, **parameters: mx.array) -> list[mx.array]:
        result = fn(*values, **parameters)
        return list(result) if isinstance(result, list | tuple) else [result]

    mx.disable_compile()
    try:
        mx.export_function(events.append, listed, arrays, named)
    finally:
        mx.enable_compile()
    return events


def _primitives(fn: Callable[..., Any], *arrays: mx.array) -> list[tuple[str, list[Any]]]:
    return [(e["name"], e["arguments"]) for e in _events(fn, *arrays) if e["type"] == "primitive"]


def test_types_and_keys_of_events() -> None:
    events = _events(lambda x, w: x * w + 3.0, X, w=mx.ones(3))
    keys = {event["type"]: set(event) for event in events}
    assert keys == {
        "inputs": {"type", "inputs"},
        "keyword_inputs": {"type", "keywords"},
        "outputs": {"type", "outputs"},
        "constants": {"type", "constants"},
        "primitive": {"type", "name", "inputs", "outputs", "arguments"},
    }
    assert [e["type"] for e in events[:4]] == ["inputs", "keyword_inputs", "outputs", "constants"]
    assert all(e["type"] == "primitive" for e in events[4:])


def test_values_are_name_shape_dtype() -> None:
    events = {e["type"]: e for e in _events(lambda x, w: x * w, X, w=mx.ones(3, mx.float16))}
    (x, w), keyword = events["inputs"]["inputs"], events["keyword_inputs"]["keywords"]
    assert x[1:] == ((2, 4, 3), mx.float32) and w[1:] == ((3,), mx.float16)
    assert keyword == [("w", w[0])], "keyword arguments come after the positional ones, named by their key"
    assert events["outputs"]["outputs"][0][1:] == ((2, 4, 3), mx.float32)
    assert events["primitive"]["outputs"] == events["outputs"]["outputs"]


def test_constants_carry_their_arrays() -> None:
    event = next(e for e in _events(lambda x: x + mx.array([1.5, 2.5, 3.5]), X) if e["type"] == "constants")
    ((name, array),) = event["constants"]
    assert isinstance(name, str)
    assert array.tolist() == [1.5, 2.5, 3.5]


def test_events_are_empty_lists_where_there_is_nothing() -> None:
    events = {e["type"]: e for e in _events(lambda x: -x, X)}
    assert events["keyword_inputs"]["keywords"] == []
    assert events["constants"]["constants"] == []


def test_primitives_are_in_topological_order() -> None:
    known: set[str] = set()
    for event in _events(lambda x, w: mx.softmax(x * w + x, axis=-1), X, w=mx.ones(3)):
        if event["type"] in {"inputs", "constants"}:
            known |= {entry[0] for entry in event[event["type"]]}
        if event["type"] == "primitive":
            assert {entry[0] for entry in event["inputs"]} <= known
            known |= {entry[0] for entry in event["outputs"]}


def test_depends_ties_results_to_inputs() -> None:
    """The shape of a marker: results first, then the tag and the marked inputs, in order."""
    tag = mx.array(1_900_000_007, mx.int32)
    events = _events(lambda x, y: mx.depends([x + 1, y + 1], [tag, y, x]), X, X + 1)
    at = {e["type"]: e for e in events}
    node = next(e for e in events if e.get("name") == "Depends")
    x, y = (entry[0] for entry in at["inputs"]["inputs"])
    results = [e["outputs"][0][0] for e in events if e.get("name") == "Add"]
    names = [entry[0] for entry in node["inputs"]]
    constants = dict(at["constants"]["constants"])
    assert names[:2] == results and names[3:] == [y, x]
    assert constants[names[2]].item() == 1_900_000_007
    assert [entry[0] for entry in node["outputs"]] == [entry[0] for entry in at["outputs"]["outputs"]]


def test_equal_calls_are_one_primitive_but_marked_calls_stay_apart() -> None:
    assert [name for name, _ in _primitives(lambda x: mx.exp(x) * mx.exp(x), X)] == ["Exp", "Multiply"]

    def marked(x: mx.array) -> mx.array:
        first, second = (mx.depends([mx.exp(x)], [mx.array(i, mx.int32), x])[0] for i in (5, 6))
        return first * second

    names = [name for name, _ in _primitives(marked, X)]
    assert names.count("Depends") == 2


_UNARY = {
    "Negative": mx.negative, "Exp": mx.exp, "Tanh": mx.tanh, "Erf": mx.erf, "Sigmoid": mx.sigmoid,
    "Square": mx.square, "Abs": mx.abs, "Sin": mx.sin, "Cos": mx.cos, "Log1p": mx.log1p, "Expm1": mx.expm1,
}  # fmt: skip
_BINARY = {
    "Add": mx.add, "Subtract": mx.subtract, "Multiply": mx.multiply, "Divide": mx.divide, "Maximum": mx.maximum,
    "Minimum": mx.minimum, "Power": mx.power, "GreaterEqual": mx.greater_equal, "Greater": mx.greater,
    "LessEqual": mx.less_equal, "Less": mx.less, "Equal": mx.equal, "NotEqual": mx.not_equal,
    "LogAddExp": mx.logaddexp,
}  # fmt: skip
# name of the primitive -> (a call that makes it, its arguments)
_OTHERS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "Sqrt": (mx.sqrt, [False]),
    "Sqrt of rsqrt": (mx.rsqrt, [True]),
    # Every base is the same primitive: the argument tells them apart.
    "Log": (mx.log, [2]),
    "Log of log2": (mx.log2, [0]),
    "Log of log10": (mx.log10, [1]),
    "Reduce sum": (lambda x: mx.sum(x, axis=(0, 2), keepdims=True), [2, [0, 2]]),
    "Reduce prod": (lambda x: mx.prod(x, axis=-1, keepdims=True), [3, [2]]),
    "Reduce min": (lambda x: mx.min(x, axis=1, keepdims=True), [4, [1]]),
    "Reduce max": (lambda x: mx.max(x, axis=1, keepdims=True), [5, [1]]),
    "Softmax": (lambda x: mx.softmax(x, axis=-1), [False]),
    "Softmax precise": (lambda x: mx.softmax(x, axis=-1, precise=True), [True]),
    "AsType": (lambda x: x.astype(mx.float16), [mx.float16]),
    "Reshape": (lambda x: x.reshape(2, -1), [(2, -1)]),
    "ExpandDims": (lambda x: x[:, None], [[1]]),
    "Squeeze": (lambda x: x[:, None].squeeze(1), [[1]]),
    "Flatten": (lambda x: mx.flatten(x, 1, 2), [1, 2]),
    "Unflatten": (lambda x: mx.unflatten(x, 2, (3, 1)), [2, (3, 1)]),
    "Transpose": (lambda x: x.transpose(2, 0, 1), [[2, 0, 1]]),
    "Broadcast": (lambda x: mx.broadcast_to(x, (5, 2, 4, 3)), [(5, 2, 4, 3)]),
    "Slice": (lambda x: x[0:1, 1:4:2], [(0, 1, 0), (1, 4, 3), (1, 2, 1)]),
    "Concatenate": (lambda x: mx.concatenate([x, x * 2], axis=1), [1]),
}


@pytest.mark.parametrize("name", _UNARY)
def test_unary_primitives(name: str) -> None:
    assert _primitives(_UNARY[name], X) == [(name, [])]


@pytest.mark.parametrize("name", _BINARY)
def test_binary_primitives(name: str) -> None:
    assert [entry[0] for entry in _primitives(_BINARY[name], X, X + 1)] == [name]


def test_logic_and_select() -> None:
    a, b = X > 0, X > 1
    assert _primitives(mx.logical_and, a, b) == [("LogicalAnd", [])]
    assert _primitives(mx.logical_or, a, b) == [("LogicalOr", [])]
    assert _primitives(mx.logical_not, a) == [("LogicalNot", [])]
    assert _primitives(mx.where, a, X, X + 1) == [("Select", [])]


@pytest.mark.parametrize("name", _OTHERS)
def test_primitives_with_arguments(name: str) -> None:
    fn, arguments = _OTHERS[name]
    found, given = _primitives(fn, X)[-1]
    assert found == name.partition(" ")[0]
    assert [list(a) if isinstance(a, list | tuple) else a for a in given] == [
        list(a) if isinstance(a, list | tuple) else a for a in arguments
    ]


def test_every_primitive_that_capture_knows_is_watched() -> None:
    watched = {*_UNARY, *_BINARY, *(name.partition(" ")[0] for name in _OTHERS)}
    assert set(TABLE) == watched | {"LogicalAnd", "LogicalOr", "LogicalNot", "Select"}
