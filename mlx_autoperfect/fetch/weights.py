"""Writes a plan's tensors as safetensors files, one shard in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.fetch.architectures import TOKEN_EMBEDDING
from mlx_autoperfect.fetch.blocks import Stored, unpack
from mlx_autoperfect.fetch.gguf import GgufFile
from mlx_autoperfect.fetch.jsonfile import write_json
from mlx_autoperfect.fetch.plan import Move, Plan

SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        bits: 4 or 8 by the MLX path of every quantised module.
        formats: how many tensors were stored in which format, ``{"4-bit": 210, "float16": 61}``.
        size: bytes of weights.
    """

    bits: dict[str, int]
    formats: dict[str, int]
    size: int


def vector_dtype(file: GgufFile, plan: Plan) -> str:
    """The dtype of the embedding's values, or float32 when a float32 vector would change in it."""
    dtype = {"BF16": "bfloat16", "F32": "float32"}.get(file.tensors[TOKEN_EMBEDDING].type, "float16")
    vectors = [move.tensor for move in plan.moves if len(move.tensor.shape) == 1 and move.tensor.type == "F32"]
    exact = all(_survives(unpack(tensor).parts["weight"], dtype) for tensor in vectors)
    return dtype if exact else "float32"


def _survives(values: NDArray[np.float32], dtype: str) -> bool:
    if dtype == "bfloat16":
        return not (values.view(np.uint32) & 0xFFFF).any()
    with np.errstate(over="ignore"):
        narrowed = values.astype(dtype).astype(np.float32)
    return bool(np.array_equal(narrowed, values))


def write_weights(
    plan: Plan, folder: Path, vectors: str, shard_bytes: int, advance: Callable[[int, int], None] | None
) -> Written:
    """Writes ``model*.safetensors``, with an index when there are several.

    Args:
        plan: the tensors and where they go.
        folder: where the files go.
        vectors: the dtype for vectors that the file stores as float32.
        shard_bytes: a file is closed before it grows past this many bytes.
        advance: called with the bytes done and in all.

    Raises:
        ModelError: a tensor has no exact form in MLX.
        OSError: a file cannot be written.
    """
    shards = list(_shards(plan.moves, shard_bytes))
    total = sum(move.tensor.data.size for move in plan.moves)
    done = written = 0
    bits: dict[str, int] = {}
    formats: Counter[str] = Counter()
    where: dict[str, str] = {}
    for number, moves in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays: dict[str, mx.array] = {}
        for move in moves:
            stored = unpack(move.tensor)
            if stored.bits:
                bits[move.path] = stored.bits
            dtype = vectors if stored.dtype == "float32" and len(move.tensor.shape) == 1 else stored.dtype
            formats[f"{stored.bits}-bit" if stored.bits else dtype] += 1
            arrays |= _arrays(move, stored, dtype)
            done += move.tensor.data.size
            if advance is not None:
                advance(done, total)
        _save(folder / name, arrays)
        written += sum(array.nbytes for array in arrays.values())
        where |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": written}, "weight_map": where}
        write_json(folder / "model.safetensors.index.json", index)
    return Written(bits, dict(formats), written)


def _save(path: Path, arrays: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})
    except RuntimeError as error:
        # MLX reports a full disk this way, without an errno.
        raise OSError(str(error)) from None


def _shards(moves: tuple[Move, ...], limit: int) -> Iterator[list[Move]]:
    current: list[Move] = []
    size = 0
    for move in moves:
        if current and size + move.tensor.data.size > limit:
            yield current
            current, size = [], 0
        current.append(move)
        size += move.tensor.data.size
    yield current


def _arrays(move: Move, stored: Stored, dtype: str) -> dict[str, mx.array]:
    arrays = {}
    for suffix, values in stored.parts.items():
        name = f"{move.path}.{move.suffix if suffix == 'weight' else suffix}"
        rows = _unpaired(values, move.unpair) if move.unpair else values
        array = mx.array(rows)
        if stored.dtype == "bfloat16":
            array = array.view(mx.bfloat16)
        arrays[name] = array if stored.bits else array.astype(getattr(mx, dtype))
    return arrays


def _unpaired(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Puts each head's rows back from (pair, side) to (side, pair) order."""
    rows = values.shape[0]
    split = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)
