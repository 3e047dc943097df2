"""Element types and quantised formats, in one table.

Names are those of the text forms (``f16``); ``numpy`` is how a value is held on the host in
float64 work, ``mlx`` the attribute of :mod:`mlx.core`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class DType(Enum):
    """An element type: text name, MLX name, bytes per element, float or not, mantissa bits."""

    F32 = ("f32", "float32", 4, True, 23)
    F16 = ("f16", "float16", 2, True, 10)
    BF16 = ("bf16", "bfloat16", 2, True, 7)
    I32 = ("i32", "int32", 4, False, 0)
    U32 = ("u32", "uint32", 4, False, 0)
    I64 = ("i64", "int64", 8, False, 0)
    BOOL = ("bool", "bool_", 1, False, 0)

    def __init__(self, text: str, mlx_name: str, size: int, is_float: bool, mantissa: int) -> None:
        self.text = text
        self.mlx_name = mlx_name
        self.size = size
        self.is_float = is_float
        self.mantissa = mantissa

    def __str__(self) -> str:
        return self.text

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value; 0 for integers."""
        return float(2.0**-self.mantissa) if self.is_float else 0.0

    @property
    def mlx(self) -> Any:
        """The matching ``mlx.core`` dtype."""
        import mlx.core as mx

        return getattr(mx, self.mlx_name)


_BY_TEXT = {dtype.text: dtype for dtype in DType}
_BY_MLX = {dtype.mlx_name.rstrip("_"): dtype for dtype in DType}


def dtype_from_text(text: str) -> DType:
    """``"f16"`` -> ``DType.F16``. Raises ``KeyError`` for an unknown name."""
    return _BY_TEXT[text]


def dtype_from_mlx(dtype: Any) -> DType | None:
    """The :class:`DType` of an MLX dtype, or ``None`` where this package has no use for it."""
    return _BY_MLX.get(str(dtype).rsplit(".", 1)[-1].rstrip("_"))


@dataclass(frozen=True)
class Affine:
    """MLX's affine quantisation: ``w = q * scale + bias``, ``q`` unsigned of ``bits`` bits.

    One scale and one bias (of type ``scale``) for ``group`` consecutive weights along the last axis;
    values are packed into uint32 words, least significant first.
    """

    bits: int
    group: int
    scale: DType

    @property
    def text(self) -> str:
        return f"q{self.bits}g{self.group}.{self.scale}"

    def bytes_per_weight(self) -> float:
        """Bytes moved per weight: packed bits plus scale and bias shared by a group."""
        return self.bits / 8 + 2 * self.scale.size / self.group


@dataclass(frozen=True)
class Dense:
    """Weights stored as plain numbers."""

    dtype: DType

    @property
    def text(self) -> str:
        return self.dtype.text

    def bytes_per_weight(self) -> float:
        return float(self.dtype.size)


Format = Affine | Dense


def format_from_text(text: str) -> Format:
    """``"q4g32.f16"`` or ``"bf16"`` -> a format. Raises ``ValueError`` for anything else."""
    if text in _BY_TEXT:
        return Dense(_BY_TEXT[text])
    head, dot, scale = text.partition(".")
    bits, g, group = head[1:].partition("g")
    if not (text.startswith("q") and dot and g and scale in _BY_TEXT and bits.isdigit() and group.isdigit()):
        raise ValueError(f"{text!r} is not a weight format such as 'q4g32.f16' or 'bf16'")
    return Affine(int(bits), int(group), _BY_TEXT[scale])
