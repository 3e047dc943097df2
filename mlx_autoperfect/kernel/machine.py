"""The reference machine: what a kernel means, executed in float64 on NumPy.

It reads operands through the strides that the IR states and runs the scalar programs row by row, so
a wrong stride, job or program in the IR gives wrong numbers here, not only in a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.graph.interpret import Symbols, bind_symbols
from mlx_autoperfect.graph.on_float64 import erf
from mlx_autoperfect.graph.types import WeightType, evaluate, evaluate_shape
from mlx_autoperfect.kernel.ir import AttentionAnchor, Gemm, Kernel, RowMap
from mlx_autoperfect.kernel.program import Apply, Literal, Load, Program, Rotate, RowReduce

Array = NDArray[Any]

_APPLY: dict[str, Any] = {
    "neg": np.negative, "exp": np.exp, "log": np.log, "tanh": np.tanh, "erf": erf, "sqrt": np.sqrt, "abs": np.abs,
    "rsqrt": lambda x: 1 / np.sqrt(x), "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "add": np.add, "sub": np.subtract,
    "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum, "square": np.square,
}  # fmt: skip
_REDUCE: dict[str, Any] = {"sum": np.sum, "max": np.max}


def _rotate(instr: Rotate, x: Array, position: float, freqs: Array | None) -> Array:
    half = instr.dims // 2
    index = np.arange(half, dtype=np.float64)
    inverse = 1 / freqs if freqs is not None else instr.base ** (-2 * index / instr.dims)
    angle = position * instr.scale * inverse
    first = 2 * np.arange(half) if instr.traditional else np.arange(half)
    second = first + 1 if instr.traditional else first + half
    y = x.copy()
    y[first] = x[first] * np.cos(angle) - x[second] * np.sin(angle)
    y[second] = x[first] * np.sin(angle) + x[second] * np.cos(angle)
    return y


def _run(program: Program, load: Callable[[Load], Any], rotate: Callable[[Rotate, Array], Array] | None = None) -> Any:
    values: dict[str, Any] = {}
    for name, instr in program.body:
        if isinstance(instr, Load):
            values[name] = load(instr)
        elif isinstance(instr, Literal):
            values[name] = np.float64(instr.value)
        elif isinstance(instr, Apply):
            values[name] = _APPLY[instr.fn](*(values[arg] for arg in instr.args))
        elif isinstance(instr, RowReduce):
            values[name] = _REDUCE[instr.fn](values[instr.arg])
        elif isinstance(instr, Rotate):
            assert rotate is not None
            values[name] = rotate(instr, values[instr.arg])
    return values[program.result]


class _Run:
    def __init__(self, kernel: Kernel, arrays: Mapping[str, Array], scalars: Mapping[str, int]) -> None:
        self.kernel = kernel
        self.arrays = arrays
        self.scalars = scalars
        self.symbols: Symbols = {}
        for operand in kernel.inputs:
            if not isinstance(operand.type, WeightType):
                bind_symbols(operand.type.shape, arrays[operand.name].shape, self.symbols)
        self.flat = {name: array.reshape(-1) for name, array in arrays.items()}
        self.outputs = {
            o.name: np.full(int(np.prod(evaluate_shape(o.type.shape, self.symbols))), np.nan) for o in kernel.outputs
        }

    def size(self, dim: Any) -> int:
        return evaluate(dim, self.symbols)

    def row(self, name: str, start: int, width: int) -> Array:
        return self.flat[name][start : start + width]

    def rowmap(self, anchor: RowMap) -> None:
        for job in anchor.jobs:
            strides = tuple(map(self.size, job.strides))
            for a in range(self.size(anchor.rows)):
                for b in range(self.size(job.heads)):

                    def load(instr: Load, a: int = a, b: int = b) -> Any:
                        if instr.access == "row":
                            sa, sb = map(self.size, instr.strides)
                            return self.row(instr.operand, a * sa + b * sb, anchor.width)
                        return self.arrays[instr.operand]

                    def rotate(instr: Rotate, x: Array, a: int = a) -> Array:
                        freqs = self.arrays[instr.freqs] if instr.freqs else None
                        return _rotate(instr, x, a + self.scalars[instr.offset], freqs)

                    start = a * strides[0] + b * strides[1]
                    self.outputs[job.out][start : start + job.width] = _run(job.program, load, rotate)

    def gemm(self, anchor: Gemm) -> None:
        for m in range(self.size(anchor.rows)):

            def load_row(instr: Load, m: int = m) -> Any:
                if instr.access == "row":
                    return self.row(instr.operand, m * self.size(instr.strides[0]), anchor.width)
                return self.arrays[instr.operand]

            x = _run(anchor.prologue, load_row)
            for job in anchor.jobs:
                columns = self.arrays[job.weights[0]].shape[0]

                def load(instr: Load, x: Array = x, m: int = m, columns: int = columns) -> Any:
                    if instr.access == "acc":
                        return self.arrays[instr.operand] @ x
                    if instr.access == "element":
                        return self.row(instr.operand, m * columns, columns)
                    return self.arrays[instr.operand]

                self.outputs[job.out][m * columns : (m + 1) * columns] = _run(job.epilogue, load)

    def attention(self, anchor: AttentionAnchor) -> None:
        k, v = self.arrays[anchor.k], self.arrays[anchor.v]
        rows, keys = self.size(anchor.rows), k.shape[2]
        out = self.outputs[anchor.out]

        def start(first: bool, h: int, m: int, width: int) -> int:
            return (m * anchor.heads + h) * width if first else (h * rows + m) * width

        for h in range(anchor.heads):
            group = h // (anchor.heads // anchor.groups)
            for m in range(rows):
                seen = keys - rows + m + 1 if anchor.causal else keys
                q = self.row(anchor.q, start(anchor.q_rows_first, h, m, anchor.width), anchor.width)
                scores = anchor.scale * (k[0, group, :seen] @ q)
                weights = np.exp(scores - scores.max())
                at = start(anchor.out_rows_first, h, m, anchor.value_width)
                out[at : at + anchor.value_width] = (weights @ v[0, group, :seen]) / weights.sum()

    def results(self) -> list[Array]:
        anchor = self.kernel.anchor
        if isinstance(anchor, RowMap):
            self.rowmap(anchor)
        elif isinstance(anchor, AttentionAnchor):
            self.attention(anchor)
        else:
            self.gemm(anchor)
        return [self.outputs[o.name].reshape(evaluate_shape(o.type.shape, self.symbols)) for o in self.kernel.outputs]


def reference(kernel: Kernel, arrays: Mapping[str, Array], scalars: Mapping[str, int] | None = None) -> list[Array]:
    """Executes ``kernel`` in float64.

    Args:
        kernel: the program.
        arrays: operand name -> float64 array of the operand's shape (weights dequantised, ``[N, K]``).
        scalars: values of the kernel's integer scalars.

    Returns:
        One array per output; elements that the kernel does not write are NaN.
    """
    return _Run(kernel, arrays, scalars or {}).results()
