"""Shapes with named sizes, and the types of graph values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_autoperfect.dtypes import DType, Format, dtype_from_text, format_from_text


@dataclass(frozen=True)
class Size:
    """A size known only at run time: ``factor`` times the symbol (``L`` rows, ``T`` cached keys)."""

    symbol: str
    factor: int = 1

    def __str__(self) -> str:
        return self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"


Dim = int | Size
Shape = tuple[Dim, ...]

_SIZE = re.compile(r"(?:(\d+)\*)?([A-Z])")


def parse_dim(text: str) -> Dim:
    """Reads ``"576"``, ``"L"`` or ``"4*L"``. Raises ``ValueError`` otherwise."""
    if text.lstrip("-").isdigit():
        return int(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    return Size(match[2], int(match[1] or 1))


def evaluate(dim: Dim, symbols: Mapping[str, int]) -> int:
    """The number of elements along an axis, given the value of each symbol."""
    return dim if isinstance(dim, int) else dim.factor * symbols[dim.symbol]


def evaluate_shape(shape: Shape, symbols: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(dim, symbols) for dim in shape)


def product(shape: Shape) -> Dim:
    """Number of elements. Raises ``ValueError`` when two symbols meet."""
    factor, symbol = 1, ""
    for dim in shape:
        if isinstance(dim, int):
            factor *= dim
            continue
        if symbol:
            raise ValueError(f"sizes {symbol} and {dim} cannot be multiplied")
        factor, symbol = factor * dim.factor, dim.symbol
    return Size(symbol, factor) if symbol else factor


def shape_text(shape: Shape) -> str:
    return "[" + ",".join(str(dim) for dim in shape) + "]"


@dataclass(frozen=True)
class ArrayType:
    """A plain array."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}{shape_text(self.shape)}"


@dataclass(frozen=True)
class WeightType:
    """A weight matrix of ``shape = (out_features, in_features)`` in some storage format.

    Packed weight, scales and biases of a quantised matrix travel together as one value.
    """

    format: Format
    shape: tuple[int, int]

    def __str__(self) -> str:
        return f"w:{self.format.text}{shape_text(self.shape)}"


Type = ArrayType | WeightType

_TYPE = re.compile(r"(w:)?([a-z][a-z0-9.]*)\[([^\]]*)\]")


def parse_type(text: str) -> Type:
    """Reads the text form of a type. Raises ``ValueError``."""
    match = _TYPE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a type such as 'f16[1,L,576]' or 'w:q4g32.f16[576,576]'")
    dims = tuple(parse_dim(part) for part in match[3].split(",")) if match[3] else ()
    if match[1]:
        rows, columns = dims
        if not (isinstance(rows, int) and isinstance(columns, int)):
            raise ValueError(f"{text!r}: a weight has fixed sizes")
        return WeightType(format_from_text(match[2]), (rows, columns))
    return ArrayType(dtype_from_text(match[2]), dims)
