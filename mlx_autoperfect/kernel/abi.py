"""The flat ABI of a kernel: the arrays that a launch is given, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_autoperfect.dtypes import Affine, DType
from mlx_autoperfect.graph.types import Shape, Type, WeightType
from mlx_autoperfect.kernel.ir import Kernel

WEIGHT_PARTS = ("weight", "scales", "biases")


@dataclass(frozen=True)
class FlatArray:
    """One array: the operand it belongs to, which part of it, dtype and shape."""

    operand: str
    part: int
    dtype: DType
    shape: Shape
    strided: bool = False


def flatten(name: str, type_: Type, strided: bool = False) -> tuple[FlatArray, ...]:
    """The arrays that hold a value: one, or packed weight, scales and biases of a quantised matrix."""
    if not isinstance(type_, WeightType):
        return (FlatArray(name, 0, type_.dtype, type_.shape, strided),)
    rows, columns = type_.shape
    if not isinstance(type_.format, Affine):
        return (FlatArray(name, 0, type_.format.dtype, (rows, columns)),)
    bits, group, scale = type_.format.bits, type_.format.group, type_.format.scale
    return (
        FlatArray(name, 0, DType.U32, (rows, columns * bits // 32)),
        FlatArray(name, 1, scale, (rows, columns // group)),
        FlatArray(name, 2, scale, (rows, columns // group)),
    )


def flat_inputs(kernel: Kernel) -> tuple[FlatArray, ...]:
    """Every input array of ``kernel``, in the order in which a launch receives them."""
    return tuple(array for o in kernel.inputs for array in flatten(o.name, o.type, o.strided))


def first_index(kernel: Kernel) -> Mapping[str, int]:
    """Position of each operand's first array among the inputs; outputs count from 0 on their own."""
    table: dict[str, int] = {}
    for position, array in enumerate(flat_inputs(kernel)):
        table.setdefault(array.operand, position)
    table.update((o.name, i) for i, o in enumerate(kernel.outputs))
    return table
