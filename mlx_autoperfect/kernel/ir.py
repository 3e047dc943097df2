"""KernelIR: anchor, scalar programs, ABI and schedule."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from mlx_autoperfect.graph.types import Dim, Type
from mlx_autoperfect.kernel.program import Program


@dataclass(frozen=True)
class Operand:
    """One array of the ABI: its name, its type, and whether it may be a strided view at run time."""

    name: str
    type: Type
    strided: bool = False


@dataclass(frozen=True)
class RowJob:
    """One result of a RowMap: ``heads`` rows per position, each written with ``strides``.

    ``width`` elements are written per row: the kernel's width, or 1 for a program that yields a scalar.
    """

    heads: Dim
    width: int
    program: Program
    out: str
    strides: tuple[Dim, Dim]


@dataclass(frozen=True)
class GemmJob:
    """One result of a matrix product: the weight matrices it needs and what becomes of their accumulators."""

    weights: tuple[str, ...]
    epilogue: Program
    out: str


@dataclass(frozen=True)
class RowMap:
    """Row programs over ``rows`` positions times each job's heads, rows of ``width`` elements."""

    rows: Dim
    width: int
    jobs: tuple[RowJob, ...]
    name: ClassVar[str] = "rowmap"


@dataclass(frozen=True)
class Gemm:
    """Base of the two matrix anchors: rows of ``width`` activations made by ``prologue``, then the jobs."""

    rows: Dim
    width: int
    prologue: Program
    jobs: tuple[GemmJob, ...]


@dataclass(frozen=True)
class MatVec(Gemm):
    """A few rows: weights are streamed once, activations stay in cache."""

    name: ClassVar[str] = "matvec"
    max_rows: ClassVar[int] = 16


@dataclass(frozen=True)
class MatMul(Gemm):
    """Many rows: weight panels are unpacked once and reused."""

    name: ClassVar[str] = "matmul"


@dataclass(frozen=True)
class AttentionAnchor:
    """Online-softmax attention of ``rows`` queries over a key/value cache.

    ``q_rows_first`` / ``out_rows_first``: memory order ``[B, L, H, D]`` instead of ``[B, H, L, D]``.
    """

    q: str
    k: str
    v: str
    out: str
    rows: Dim
    heads: int
    groups: int
    width: int
    value_width: int
    scale: float
    causal: bool
    q_rows_first: bool
    out_rows_first: bool
    name: ClassVar[str] = "attention"


Anchor = RowMap | MatVec | MatMul | AttentionAnchor


@dataclass(frozen=True)
class Schedule:
    """Knobs that change how, never what; empty means the backend's defaults."""

    knobs: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return "{" + ", ".join(f"{key}={value}" for key, value in self.knobs) + "}"


@dataclass(frozen=True)
class Kernel:
    """A kernel program: what one launch computes.

    Attributes:
        name: says the fusion; for people.
        signature: of the region it computes.
        inputs: operands in ABI order, weights as one operand each.
        outputs: operands in ABI order; their types give the shapes handed out.
        scalars: names of 0-d integer inputs that reach the kernel as symbols (the cache's offset).
        anchor: the loop structure with its programs.
        schedule: how it is run.
    """

    name: str
    signature: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    scalars: tuple[str, ...]
    anchor: Anchor
    schedule: Schedule = Schedule()

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the text form: the identity of the kernel in the store."""
        from mlx_autoperfect.kernel.text import print_kernel

        return hashlib.sha256(print_kernel(self).encode()).hexdigest()
