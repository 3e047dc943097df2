"""The inputs that a kernel is judged on: the model's own shapes, boundaries, and values that show mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.dtypes import Affine, DType
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.graph.ops import Rope
from mlx_autoperfect.graph.types import ArrayType, WeightType, evaluate_shape
from mlx_autoperfect.kernel.ir import Kernel, MatMul

Array = NDArray[Any]
Rng = np.random.Generator

# Spread of activation values: ordinary, near the size of a norm's epsilon, with large outliers.
_SCALES = {"normal": 1.0, "tiny": 2e-3, "large": 12.0}


@dataclass(frozen=True)
class Case:
    """One judged call.

    Attributes:
        name: sizes and kind of values, for people.
        rows: value of the symbol L.
        offset: positions in the cache before this call.
        keys: value of the symbol T.
        inputs: arrays by input name of the region's graph (scalars as Python ints).
        params: stored arrays by parameter path of the region's graph.
    """

    name: str
    rows: int
    offset: int
    keys: int
    inputs: Mapping[str, Any]
    params: Mapping[str, mx.array]


def _mlx(values: Array, dtype: DType) -> mx.array:
    return mx.array(values.astype(np.float32)).astype(dtype.mlx)


def _activations(rng: Rng, shape: tuple[int, ...], kind: str) -> Array:
    values = rng.standard_normal(shape) * _SCALES[kind]
    if kind == "large" and values.size > 4:
        # Real hidden states have a few channels that are far larger than the rest.
        spikes = rng.choice(values.size, max(1, values.size // 200), replace=False)
        values.reshape(-1)[spikes] *= 8
    return values


def weight_parts(rng: Rng, type_: WeightType) -> dict[str, mx.array]:
    """Random stored arrays of a weight matrix; products with unit rows are of size one."""
    rows, columns = type_.shape
    if not isinstance(type_.format, Affine):
        return {"weight": _mlx(rng.standard_normal((rows, columns)) / np.sqrt(columns), type_.format.dtype)}
    bits, group = type_.format.bits, type_.format.group
    words = rng.integers(0, 1 << 32, (rows, columns * bits // 32), dtype=np.uint64).astype(np.uint32)
    # Half the scales are negative, and zero points differ from group to group.
    step = rng.uniform(0.5, 1.5, (rows, columns // group)) * rng.choice([-1.0, 1.0], (rows, columns // group))
    step *= 3.5 / ((1 << bits) * np.sqrt(columns))
    zero = -step * ((1 << bits) - 1) * rng.uniform(0.3, 0.7, step.shape)
    scale = type_.format.scale
    return {"weight": mx.array(words), "scales": _mlx(step, scale), "biases": _mlx(zero, scale)}


def _params(rng: Rng, region: Region) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for param in region.graph.params:
        if isinstance(param.type, WeightType):
            found.update((f"{param.path}.{part}", a) for part, a in weight_parts(rng, param.type).items())
        else:
            shape = evaluate_shape(param.type.shape, {})
            found[param.path] = _mlx(1 + 0.5 * rng.standard_normal(shape), param.type.dtype)
    return found


@dataclass(frozen=True)
class Setting:
    """Sizes and kind of values of a case."""

    rows: int
    offset: int
    kind: str

    @property
    def keys(self) -> int:
        return self.offset + self.rows


def _settings(region: Region, kernel: Kernel) -> tuple[Setting, ...]:
    symbolic = any(not isinstance(d, int) for _, t in region.graph.inputs for d in t.shape)
    if region.kind is RegionKind.GEMM:
        if not symbolic:
            rows = [(1, "normal"), (1, "tiny"), (1, "large")]
        elif isinstance(kernel.anchor, MatMul):
            rows = [(17, "normal"), (33, "tiny"), (97, "large")]
        else:
            rows = [(1, "normal"), (2, "normal"), (5, "tiny"), (16, "large")]
        return tuple(Setting(r, 3, kind) for r, kind in rows)
    only_one = not any("L" in str(d) for _, t in region.graph.inputs for d in t.shape)
    if region.kind is RegionKind.ATTENTION:
        if only_one:
            sizes = [(1, 0), (1, 1), (1, 62), (1, 63), (1, 64), (1, 299), (1, 1023)]
        else:
            sizes = [(1, 4), (2, 0), (2, 63), (7, 130), (16, 49), (33, 0), (65, 40)]
        kinds = ("normal", "large", "tiny")
        return tuple(Setting(r, o, kinds[i % 3]) for i, (r, o) in enumerate(sizes))
    sizes = [(1, 0), (1, 1), (1, 517), (1, 100_003)] if only_one else [(1, 3), (2, 0), (5, 1), (33, 4097)]
    row_kinds = ("normal", "large", "tiny", "normal")
    return tuple(Setting(r, o, kind) for (r, o), kind in zip(sizes, row_kinds, strict=True))


def _inputs(rng: Rng, region: Region, kernel: Kernel, setting: Setting) -> dict[str, Any]:
    strided = {o.name for o in kernel.inputs if o.strided}
    symbols = {"L": setting.rows, "T": setting.keys}
    tables = {node.inputs[2] for node in region.graph.nodes if isinstance(node.op, Rope) and len(node.inputs) > 2}
    found: dict[str, Any] = {}
    for name, type_ in region.graph.inputs:
        assert isinstance(type_, ArrayType)
        if name in kernel.scalars:
            found[name] = setting.offset
            continue
        shape = evaluate_shape(type_.shape, symbols)
        if name in tables:
            # Wavelengths as rotary embeddings have them, from 1 to thousands of positions.
            growth = 10_000 ** (np.arange(shape[0]) / max(1, shape[0]))
            found[name] = _mlx(growth * rng.uniform(1, 8, shape), type_.dtype)
        elif name in strided:
            # As a cache hands them out: the first positions of a larger buffer, the rest poison.
            capacity = (setting.keys // 256 + 1) * 256
            whole = np.full((*shape[:2], capacity, shape[3]), np.nan)
            whole[:, :, : shape[2]] = _activations(rng, shape, "normal")
            found[name] = _mlx(whole, type_.dtype)[:, :, : shape[2], :]
        else:
            found[name] = _mlx(_activations(rng, shape, setting.kind), type_.dtype)
    return found


@dataclass(frozen=True)
class Draws:
    """Draws cases for one kernel from a seed. Two weight sets alternate through the kernel."""

    region: Region
    kernel: Kernel
    rng: Rng
    sets: tuple[Mapping[str, mx.array], Mapping[str, mx.array]]

    @classmethod
    def start(cls, region: Region, kernel: Kernel, seed: int) -> Draws:
        rng = np.random.default_rng(seed)
        return cls(region, kernel, rng, (_params(rng, region), _params(rng, region)))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What the kernel is judged on."""
        return _settings(self.region, self.kernel)

    def draw(self, number: int, setting: Setting) -> Case:
        """Fresh values for one setting."""
        return Case(
            f"L={setting.rows} T={setting.keys} {setting.kind}",
            setting.rows,
            setting.offset,
            setting.keys,
            _inputs(self.rng, self.region, self.kernel, setting),
            self.sets[number % 2],
        )
