"""Where a model's transformer blocks are, and its linear leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.nn as nn

from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.errors import Reason


@dataclass(frozen=True)
class Block:
    """One transformer block: its path in the model and the module."""

    path: str
    module: nn.Module


def find_blocks(model: nn.Module) -> tuple[Block, ...]:
    """The blocks in order: what ``model.layers`` lists, as mlx-lm has every model offer it.

    Raises:
        CaptureError: the model has no such list.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, list) or not layers or not all(isinstance(item, nn.Module) for item in layers):
        raise CaptureError(Reason.NO_BLOCKS, f"{type(model).__name__} lists no transformer blocks as `layers`")
    path_of = {id(module): path for path, module in model.named_modules()}
    return tuple(Block(path_of.get(id(module), f"layers.{i}"), module) for i, module in enumerate(layers))


def linear_leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``(path, module)`` of every plain or affine-quantised linear layer; subclasses are somebody else's."""
    for path, module in model.named_modules():
        plain = type(module) is nn.Linear
        affine = type(module) is nn.QuantizedLinear and getattr(module, "mode", "affine") == "affine"
        if plain or affine:
            yield path, module
