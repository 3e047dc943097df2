"""Turns GGUF tensor storage into MLX arrays without changing a value.

GGUF quantises in blocks of 32 along a row. MLX's affine formats write an element as
``scale * q + bias`` with unsigned ``q`` and one scale and bias per group, so with groups of 32:

======  ====  =================================  ==================================
GGUF    bits  element in GGUF                    as MLX stores it
======  ====  =================================  ==================================
Q4_0    4     ``d * (q - 8)``                    scale ``d``, bias ``-8 d``
Q4_1    4     ``d * q + m``                      scale ``d``, bias ``m``
Q8_0    8     ``d * q``, q from -128 to 127      q + 128, scale ``d``, bias ``-128 d``
======  ====  =================================  ==================================

A float16 times a power of two is exact unless it overflows, which is checked. So every element has
the same value, in float32 the same bits; only a zero may lose its sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.gguf import Tensor

GROUP_SIZE = 32

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """A tensor's parts as NumPy arrays, ready for MLX.

    Attributes:
        dtype: MLX's name of the dtype of the values: float32, float16 or bfloat16.
        bits: 4 or 8 when quantised, 0 when dense.
        parts: by suffix. Dense: ``weight`` (bfloat16 as uint16 bits). Quantised: ``weight`` as
            uint32 of shape ``(rows, columns * bits / 32)``, ``scales`` and ``biases`` as float16
            of shape ``(rows, columns / 32)``.
    """

    dtype: str
    bits: int
    parts: dict[str, NDArray[Any]]


def unpack(tensor: Tensor) -> Stored:
    """Reads one tensor's storage.

    Raises:
        ModelError: a quantised tensor is not a matrix, or a Q4_0 or Q8_0 scale is so large that
            its bias has no float16.
    """
    return _UNPACK[tensor.type](tensor)


def _dense(dtype: str, element: str) -> Callable[[Tensor], Stored]:
    def convert(tensor: Tensor) -> Stored:
        return Stored(dtype, 0, {"weight": np.ascontiguousarray(tensor.data).view(element)})

    return convert


def _quantised(bits: int, header: int, read: Callable[[Bytes, Tensor], tuple[Bytes, Any, Any]]) -> Any:
    def convert(tensor: Tensor) -> Stored:
        if len(tensor.shape) != 2:
            raise ModelError(
                f"{tensor.name} is quantised but is no matrix: its shape is {tensor.shape}; convert it again"
            )
        rows, columns = tensor.shape
        blocks = tensor.data.reshape(rows, columns // GROUP_SIZE, header + GROUP_SIZE * bits // 8)
        packed, scales, biases = read(blocks, tensor)
        words = np.ascontiguousarray(packed).reshape(rows, columns * bits // 8).view("<u4")
        return Stored("float16", bits, {"weight": words, "scales": scales, "biases": biases})

    return convert


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0]


def _nibbles(codes: Bytes) -> Bytes:
    """From GGUF's order (byte j: elements j and j + 16) to MLX's (byte j: elements 2j and 2j + 1)."""
    values = np.concatenate([codes & 15, codes >> 4], axis=-1)
    packed: Bytes = values[..., 0::2] | values[..., 1::2] << 4
    return packed


def _times(tensor: Tensor, scales: NDArray[np.float16], factor: float) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        biases: NDArray[np.float16] = scales * np.float16(factor)
    if not np.isfinite(biases).all():
        raise ModelError(f"{tensor.name} has a {tensor.type} scale too large for MLX's float16 bias; use an F16 file")
    return biases


def _q4_0(blocks: Bytes, tensor: Tensor) -> tuple[Bytes, Any, Any]:
    scales = _half(blocks, 0)
    return _nibbles(blocks[..., 2:]), scales, _times(tensor, scales, -8)


def _q4_1(blocks: Bytes, _: Tensor) -> tuple[Bytes, Any, Any]:
    return _nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Bytes, tensor: Tensor) -> tuple[Bytes, Any, Any]:
    scales = _half(blocks, 0)
    return blocks[..., 2:] ^ np.uint8(128), scales, _times(tensor, scales, -128)


_UNPACK: dict[str, Callable[[Tensor], Stored]] = {
    "F32": _dense("float32", "<f4"),
    "F16": _dense("float16", "<f2"),
    "BF16": _dense("bfloat16", "<u2"),
    "Q4_0": _quantised(4, 2, _q4_0),
    "Q4_1": _quantised(4, 4, _q4_1),
    "Q8_0": _quantised(8, 2, _q8_0),
}
