"""One trace: MLX streams the primitives that a function runs, with its parameters named by path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_autoperfect.capture.markers import CaptureError, Marker, marking
from mlx_autoperfect.errors import Reason

Arrays = Sequence[mx.array]


@dataclass(frozen=True)
class Primitive:
    """One primitive as MLX reports it; values are ``(id, shape, dtype)``."""

    name: str
    inputs: tuple[tuple[str, tuple[int, ...], Any], ...]
    outputs: tuple[tuple[str, tuple[int, ...], Any], ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Trace:
    """What MLX said it runs.

    Attributes:
        inputs: values of the positional arguments, in order.
        params: value id -> dotted path of the parameter.
        outputs: values returned.
        constants: value id -> array.
        primitives: in topological order.
        marker: the semantic marks made during the trace.
    """

    inputs: tuple[tuple[str, tuple[int, ...], Any], ...]
    params: dict[str, tuple[str, tuple[int, ...], Any]]
    outputs: tuple[str, ...]
    constants: dict[str, mx.array]
    primitives: tuple[Primitive, ...]
    marker: Marker


def _tables(module: nn.Module) -> list[mx.array]:
    items = [item for part in module.modules() for item in (*part.items(), *vars(part).items())]
    return [value for key, value in items if isinstance(value, mx.array) and key.startswith("_")]


def _value(entry: Any) -> tuple[str, tuple[int, ...], Any]:
    name, shape, dtype = entry
    return name, tuple(shape), dtype


def trace(module: nn.Module, function: Callable[[Marker, Arrays], Arrays], arguments: Arrays) -> Trace:
    """Traces ``function(marker, arguments)`` with every parameter of ``module`` a named input.

    Nothing is computed and the module is left as it was, whatever happens.

    Raises:
        CaptureError: the function cannot be traced; says why.
    """
    params: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    # Tables that are no parameters are constants of the trace; one that is still a graph would be traced itself.
    mx.eval(_tables(module))
    marker = Marker()
    events: list[dict[str, Any]] = []

    def traced(*values: mx.array, **named: mx.array) -> list[mx.array]:
        module.update(tree_unflatten(list(named.items())))
        return list(function(marker, values))

    try:
        with marking(marker):
            mx.export_function(events.append, traced, tuple(arguments), params)
    except CaptureError:
        raise
    except Exception as error:  # any model code runs in here
        raise CaptureError(Reason.NOT_TRACEABLE, f"{type(error).__name__}: {error}") from error
    finally:
        module.update(tree_unflatten(list(params.items())))

    by_type = {event["type"]: event for event in events if event["type"] != "primitive"}
    # Values that are parameters appear among the inputs too; positional ones come first.
    inputs = [_value(entry) for entry in by_type["inputs"]["inputs"]]
    path_of = {name: path for path, name in by_type["keyword_inputs"]["keywords"]}
    return Trace(
        inputs=tuple(inputs[: len(arguments)]),
        params={name: (path, params[path].shape, params[path].dtype) for name, path in path_of.items()},
        outputs=tuple(entry[0] for entry in by_type["outputs"]["outputs"]),
        constants=dict(by_type["constants"]["constants"]),
        primitives=tuple(
            Primitive(
                event["name"],
                tuple(map(_value, event["inputs"])),
                tuple(map(_value, event["outputs"])),
                tuple(event["arguments"]),
            )
            for event in events
            if event["type"] == "primitive"
        ),
        marker=marker,
    )
