"""Tiny models of the profiled families, the model-wide oracle, and a driver for captured graphs."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from numpy.typing import NDArray

from mlx_autoperfect.capture.blocks import find_blocks
from mlx_autoperfect.capture.model import BlockCall, capture_block, capture_root
from mlx_autoperfect.capture.regime import DECODE, PREFILL, Regime
from mlx_autoperfect.fusion.partition import Fuel, Partition, partition
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.on_float64 import run_on_float64
from mlx_autoperfect.graph.on_mlx import run_on_mlx
from mlx_autoperfect.passes.driver import canonicalize
from mlx_autoperfect.verify.judge import to_numpy

Array = NDArray[Any]
PROFILES = Path(__file__).parent.parent / "model_profiles"
FAMILIES = ("llama", "qwen2", "qwen3")
REGIMES = {"decode": DECODE, "prefill": PREFILL}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@cache
def profile(family: str) -> dict[str, Any]:
    """The profile of a family, as its TOML file says."""
    return tomllib.loads((PROFILES / f"{family}.toml").read_text())


@dataclass(frozen=True)
class Spec:
    """One tiny model: family, dtype of activations, quantisation, and settings that differ from the profile's.

    Attributes:
        quant: bits and group size; ``None`` for dense weights.
        rope_dims: rotates only so many features of a head.
    """

    family: str = "llama"
    dtype: str = "float16"
    quant: tuple[int, int] | None = (4, 32)
    config: tuple[tuple[str, Any], ...] = ()
    rope_dims: int | None = None
    label: str = ""

    def __str__(self) -> str:
        weights = "dense" if self.quant is None else "q{}g{}".format(*self.quant)
        return "-".join(filter(None, (self.family, self.label, weights, self.dtype)))


def build(spec: Spec, seed: int = 0) -> nn.Module:
    """A model in evaluation mode whose weights are random and of the size that real ones have."""
    config = {**profile(spec.family)["tiny"], **dict(spec.config)}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    if spec.rope_dims is not None:
        for layer in model.layers:
            layer.self_attn.rope = nn.RoPE(spec.rope_dims, base=config["rope_theta"])
    randomize(model, seed)
    model.set_dtype(getattr(mx, spec.dtype))
    if spec.quant is not None:
        nn.quantize(model, group_size=spec.quant[1], bits=spec.quant[0])
    model.eval()
    mx.eval(model.parameters())
    # Frequency tables are no parameters: a model that has answered once holds them evaluated.
    mx.eval([v for m in model.modules() for v in m.values() if isinstance(v, mx.array)])
    return model


def randomize(model: nn.Module, seed: int) -> None:
    """Draws every parameter anew: norm weights around one, biases that matter, matrices that keep rows of unit size."""
    rng = np.random.default_rng(seed)

    def draw(path: str, old: mx.array) -> mx.array:
        values = rng.standard_normal(old.shape)
        if old.ndim == 1:
            values = values * 0.3 + (0.0 if path.endswith("bias") else 1.0)
        elif "embed" not in path:
            values /= np.sqrt(old.shape[-1])
        return mx.array(values.astype(np.float32)).astype(old.dtype)

    model.update(tree_map_with_path(draw, model.parameters()))


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def tokens_of(count: int, seed: int = 0, vocabulary: int = 160) -> mx.array:
    """``[1, count]`` token numbers."""
    return mx.array(np.random.default_rng(seed).integers(0, vocabulary, (1, count)), mx.uint32)


@dataclass(frozen=True)
class Program:
    """A whole model as captured graphs, in one regime."""

    root: Graph
    blocks: tuple[Graph, ...]
    calls: tuple[BlockCall, ...]
    paths: tuple[str, ...]

    def map(self, change: Callable[[Graph], Graph]) -> Program:
        return Program(change(self.root), tuple(map(change, self.blocks)), self.calls, self.paths)


def capture(model: nn.Module, regime: Regime) -> Program:
    """Root and every block of ``model``."""
    found = find_blocks(model)
    root = capture_root(model, [block.module for block in found], regime)
    blocks = tuple(
        capture_block(block.module, call, regime, block.path) for block, call in zip(found, root.calls, strict=True)
    )
    return Program(root.graph, blocks, root.calls, tuple(block.path for block in found))


def canonical(graph: Graph) -> Graph:
    return canonicalize(graph)[0]


def partitions(model: nn.Module, regime: Regime, fuel: int | None = None) -> dict[str, Partition]:
    """Root and first block, cut into regions."""
    program = capture(model, regime).map(canonical)
    budget = Fuel(fuel)
    return {"root": partition(program.root, budget), "block": partition(program.blocks[0], budget)}


def below(params: dict[str, Any], path: str) -> dict[str, Any]:
    """The parameters under ``path``, by their path from there."""
    return {key.removeprefix(path + "."): value for key, value in params.items() if key.startswith(path + ".")}


def run_program(
    program: Program,
    run: Callable[..., list[Any]],
    tokens: Any,
    offset: Any,
    params: dict[str, Any],
    update: Callable[[int, Any, Any], Sequence[Any]],
) -> Any:
    """Logits of ``tokens``: the root's graph with each block's graph as the answer to its effect.

    Args:
        run: an interpreter: ``run_on_mlx`` or ``run_on_float64``.
        update: ``(block, keys, values) -> (all keys, all values)``.
    """

    def block(node: Node, arguments: tuple[Any, ...]) -> Sequence[Any]:
        assert isinstance(node.op, ops.CallBlock)
        index = node.op.index

        def cache_update(_: Node, parts: tuple[Any, ...]) -> Sequence[Any]:
            return update(index, parts[0], parts[1])

        return run(program.blocks[index], [arguments[0], offset], below(params, program.paths[index]), cache_update)

    return run(program.root, [tokens, offset], params, block)[0]


def run_eagerly(program: Program, model: nn.Module, tokens: mx.array, caches: list[Any]) -> mx.array:
    """The captured graphs on MLX over mlx-lm's own caches."""
    offset = mx.array(caches[0].offset, mx.int32)
    update = lambda index, keys, values: caches[index].update_and_fetch(keys, values)  # noqa: E731
    return run_program(program, run_on_mlx, tokens, offset, parameters(model), update)


class Oracle:
    """The model in float64 with a float64 cache, from its captured graphs and its stored weights."""

    def __init__(self, model: nn.Module) -> None:
        self._programs = {name: capture(model, regime) for name, regime in REGIMES.items()}
        self._params = {path: to_numpy(array) for path, array in parameters(model).items()}
        self.cache: dict[int, tuple[Array, Array]] = {}
        self.offset = 0

    def __call__(self, tokens: mx.array) -> Array:
        """Logits ``[1, L, V]`` of the next ``L`` tokens."""
        rows = tokens.shape[1]
        program = self._programs["decode" if rows == 1 else "prefill"]
        logits = run_program(
            program, run_on_float64, np.array(tokens), np.asarray(self.offset), self._params, self._update
        )
        self.offset += rows
        return logits  # type: ignore[no-any-return]

    def _update(self, index: int, keys: Array, values: Array) -> tuple[Array, Array]:
        if index in self.cache:
            before = self.cache[index]
            keys, values = (np.concatenate(pair, axis=2) for pair in zip(before, (keys, values), strict=True))
        self.cache[index] = keys, values
        return self.cache[index]


def _bytes(array: mx.array) -> bytes:
    return bytes(memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8)))


def same_bits(a: mx.array, b: mx.array) -> bool:
    """Equal dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and (a.size == 0 or _bytes(a) == _bytes(b))


def regions_of(spec: Spec) -> Iterator[tuple[str, Any]]:
    """``(label, region)`` of every region of a tiny model, both regimes, each signature once."""
    model, seen = build(spec), set()
    for name, regime in REGIMES.items():
        for what, parts in partitions(model, regime).items():
            for region in parts.regions:
                if region.signature not in seen:
                    seen.add(region.signature)
                    yield f"{name}.{what}.{region.name}", region


def stored(cache: Any) -> tuple[mx.array, mx.array]:
    """What a plain key/value cache holds: keys and values up to its offset."""
    return cache.keys[..., : cache.offset, :], cache.values[..., : cache.offset, :]
