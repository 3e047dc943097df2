"""Errors of a model's logits against float64, stock beside patched; a function for ``main_job.py``.

The reference runs the captured graphs in float64 with dequantised weights and a float64 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

import mlx_autoperfect
from mlx_autoperfect.capture.blocks import find_blocks
from mlx_autoperfect.capture.model import capture_block, capture_root
from mlx_autoperfect.capture.regime import PREFILL
from mlx_autoperfect.graph.graph import Node
from mlx_autoperfect.graph.on_float64 import run_on_float64
from mlx_autoperfect.graph.ops import CallBlock

Array = NDArray[Any]


def _host(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


class Float64Model:
    """The model in float64, with a cache: call it with more tokens to go on."""

    def __init__(self, model: nn.Module) -> None:
        self.blocks = find_blocks(model)
        root = capture_root(model, [b.module for b in self.blocks], PREFILL)
        self.root = root.graph
        self.graphs = [
            capture_block(b.module, call, PREFILL, b.path) for b, call in zip(self.blocks, root.calls, strict=True)
        ]
        self.root_arrays = {k: _host(v) for k, v in tree_flatten(model.parameters())}
        self.arrays = [{k: _host(v) for k, v in tree_flatten(b.module.parameters())} for b in self.blocks]
        self.cache: list[tuple[Array, Array] | None] = [None] * len(self.blocks)
        self.offset = 0

    def __call__(self, tokens: list[int]) -> Array:
        offset = np.array(self.offset)

        def call(node: Node, args: tuple[Any, ...]) -> list[Array]:
            assert isinstance(node.op, CallBlock)
            index = node.op.index

            def update(_: Node, new: tuple[Any, ...]) -> list[Array]:
                old = self.cache[index]
                both = new if old is None else tuple(np.concatenate(p, axis=2) for p in zip(old, new, strict=True))
                self.cache[index] = (both[0], both[1])
                return list(both)

            return run_on_float64(self.graphs[index], [args[0], offset], self.arrays[index], update)

        logits = run_on_float64(self.root, [np.array([tokens]), offset], self.root_arrays, call)[0]
        self.offset += len(tokens)
        return logits[0]


@dataclass(frozen=True)
class Accuracy:
    """Against float64, over all positions: largest and mean error of a logit, mean KL, top-1 agreement."""

    worst: float
    mean: float
    kl: float
    top1: float


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _compare(got: Array, oracle: Array) -> Accuracy:
    error = np.abs(got - oracle)
    p, q = _log_softmax(oracle), _log_softmax(got)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    same = got.argmax(axis=-1) == oracle.argmax(axis=-1)
    return Accuracy(float(error.max()), float(error.mean()), float(kl.mean()), float(same.mean()))


def _logits(model: nn.Module, prompt: list[int], steps: list[int]) -> Array:
    cache = make_prompt_cache(model)
    found = [model(mx.array([prompt]), cache=cache)]
    found += [model(mx.array([[token]]), cache=cache) for token in steps]
    return np.concatenate([_host(logits[0]).astype(np.float64) for logits in found])


def measure(model: nn.Module, prompt: list[int], steps: list[int], say: Callable[[str], None]) -> dict[str, Accuracy]:
    """Logits at every position of ``prompt`` and of ``steps`` decoded one by one: stock and patched."""
    reference = Float64Model(model)
    say("float64")
    oracle = np.concatenate([reference(prompt), *(reference([token]) for token in steps)])
    say("stock")
    stock = _logits(model, prompt, steps)
    mlx_autoperfect.optimize(model)
    say("patched")
    patched = _logits(model, prompt, steps)
    mlx_autoperfect.restore(model)
    return {"stock": _compare(stock, oracle), "patched": _compare(patched, oracle)}
