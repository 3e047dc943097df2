"""Reads GGUF files: metadata, and tensors as views of the memory-mapped file.

The layout (versions 2 and 3, little-endian): magic, version, counts, key-value pairs, tensor
descriptions, then the tensors' bytes, each aligned to ``general.alignment`` (32 by default).
Nothing in the file is trusted: every length is checked against the bytes that are left.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorType:
    """How a GGUF tensor is stored: ``block`` elements in ``size`` bytes; 0 when this reader has no need of it."""

    name: str
    block: int = 0
    size: int = 0


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0"),
    7: TensorType("Q5_1"),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1"),
    10: TensorType("Q2_K"),
    11: TensorType("Q3_K"),
    12: TensorType("Q4_K"),
    13: TensorType("Q5_K"),
    14: TensorType("Q6_K"),
    15: TensorType("Q8_K"),
    16: TensorType("IQ2_XXS"),
    17: TensorType("IQ2_XS"),
    18: TensorType("IQ3_XXS"),
    19: TensorType("IQ1_S"),
    20: TensorType("IQ4_NL"),
    21: TensorType("IQ3_S"),
    22: TensorType("IQ2_S"),
    23: TensorType("IQ4_XS"),
    24: TensorType("I8"),
    25: TensorType("I16"),
    26: TensorType("I32"),
    27: TensorType("I64"),
    28: TensorType("F64"),
    29: TensorType("IQ1_M"),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0"),
    35: TensorType("TQ2_0"),
    39: TensorType("MXFP4"),
    40: TensorType("NVFP4"),
}
SUPPORTED_TYPES = tuple(kind.name for kind in TENSOR_TYPES.values() if kind.block)


@dataclass(frozen=True)
class Tensor:
    """One stored tensor.

    Attributes:
        name: its name in the file.
        type: the name of its GGUF type, one of ``SUPPORTED_TYPES``.
        shape: rows first, as NumPy writes it (the file stores it the other way round).
        data: the raw bytes, uint8 of shape ``(*shape[:-1], bytes per row)``; a view of the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says: metadata by key, tensors by name in the order of the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class _Cursor:
    """Takes values from a buffer one after another and refuses to run past its end."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.buffer):
            raise ModelError(
                f"{self.path} is cut short: its header runs past its {len(self.buffer)} bytes; download it again"
            )
        taken = self.buffer[self.position : end]
        self.position = end
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(self.scalar("I"), self.scalar("Q"))
        if kind not in _SCALARS:
            raise ModelError(f"{self.path} is damaged: metadata of the unknown type {kind}; download it again")
        return self.scalar(_SCALARS[kind])

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        code = _SCALARS.get(kind)
        if code is None:
            raise ModelError(f"{self.path} is damaged: an array of the unknown type {kind}; download it again")
        raw = self.take(count * struct.calcsize("<" + code))
        return list(np.frombuffer(raw, np.dtype(code).newbyteorder("<")).tolist())


def read_gguf(path: Path) -> GgufFile:
    """Opens a GGUF file; tensor data stays on disk until it is used.

    Raises:
        ModelError: the file is missing, not GGUF, of an unknown version or byte order, cut short,
            or holds a tensor of a type outside ``SUPPORTED_TYPES``.
    """
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as GGUF: {error}; give the path of a GGUF file") from None
    cursor = _Cursor(path, buffer)
    if buffer[:4] != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it does not begin with the letters GGUF; give another file")
    cursor.take(4)
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        hint = " (big-endian files are not supported)" if version >> 16 else ""
        raise ModelError(f"{path} is GGUF version {version}{hint}; versions 2 and 3 are read, so convert it again")
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"))
    described = [_describe(cursor) for _ in range(tensor_count)]
    _refuse_types(path, described)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ModelError(f"{path} is damaged: general.alignment is {alignment!r}; download it again")
    start = -(-cursor.position // alignment) * alignment
    content = np.frombuffer(buffer, np.uint8)
    tensors = {one.name: _view(path, content, start, one) for one in described}
    return GgufFile(path, metadata, tensors)


@dataclass(frozen=True)
class _Description:
    """One entry of the list of tensors: where its data lies, in bytes after the header."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int


def _describe(cursor: _Cursor) -> _Description:
    name = cursor.text()
    rank = cursor.scalar("I")
    if not 1 <= rank <= _MAX_DIMENSIONS:
        raise ModelError(f"{cursor.path} is damaged: tensor {name} has {rank} dimensions; download it again")
    shape = tuple(cursor.scalar("Q") for _ in range(rank))[::-1]
    number = cursor.scalar("I")
    kind = TENSOR_TYPES.get(number, TensorType(f"number {number}"))
    return _Description(name, shape, kind, cursor.scalar("Q"))


def _refuse_types(path: Path, described: list[_Description]) -> None:
    refused = [f"{one.name} ({one.type.name})" for one in described if not one.type.block]
    if refused:
        others = f" and {len(refused) - 3} more tensors" if len(refused) > 3 else ""
        raise ModelError(
            f"{path} cannot be converted without loss: {', '.join(refused[:3])}{others}; "
            f"the supported types are {', '.join(SUPPORTED_TYPES)}, so use a file made of those"
        )


def _view(path: Path, content: NDArray[np.uint8], start: int, one: _Description) -> Tensor:
    *outer, columns = one.shape
    if columns % one.type.block:
        raise ModelError(
            f"{path} is damaged: rows of {one.name} are no whole {one.type.name} blocks; download it again"
        )
    row = columns // one.type.block * one.type.size
    begin = start + one.offset
    end = begin + math.prod(outer) * row
    if end > content.size:
        raise ModelError(f"{path} is cut short: {one.name} ends at byte {end} of {content.size}; download it again")
    return Tensor(one.name, one.type.name, one.shape, content[begin:end].reshape(*outer, row))
