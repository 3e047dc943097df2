"""Scalar programs: what a kernel computes around its anchor, in SSA over float32.

A value is a *row* (one number per element along the kernel's width) or a *scalar* (one per row).
Every operation works element by element; only :class:`RowReduce` and :class:`Rotate` look along a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlx_autoperfect.graph.types import Dim


@dataclass(frozen=True)
class Instr:
    """Base of the instructions; ``opcode`` is the word in the text form."""

    opcode: ClassVar[str]


@dataclass(frozen=True)
class Load(Instr):
    """Elements of an operand.

    ``access`` says which: ``row`` (element k of the current row), ``column`` (element k of a vector that
    all rows share), ``scalar`` (a single number), ``element`` (where the result will be written),
    ``acc`` (the accumulators of a weight matrix). ``strides`` are those of the two row axes for ``row``.
    """

    operand: str
    access: str
    strides: tuple[Dim, ...] = ()
    opcode = "load"


@dataclass(frozen=True)
class Literal(Instr):
    """A constant."""

    value: float
    opcode = "const"


@dataclass(frozen=True)
class Apply(Instr):
    """``fn`` of one, two or three values (``select`` takes condition, then, else)."""

    fn: str
    args: tuple[str, ...]
    opcode = "apply"


@dataclass(frozen=True)
class RowReduce(Instr):
    """Sum or maximum over the row: a scalar."""

    fn: str
    arg: str
    opcode = "reduce"


@dataclass(frozen=True)
class Rotate(Instr):
    """Rotary embedding of the row at position ``row + offset`` (see :class:`~mlx_autoperfect.graph.ops.Rope`)."""

    arg: str
    offset: str
    dims: int
    base: float
    scale: float
    traditional: bool
    freqs: str = ""
    opcode = "rotate"


@dataclass(frozen=True)
class Program:
    """Named instructions in order, and the value that is the result."""

    body: tuple[tuple[str, Instr], ...]
    result: str

    @property
    def defs(self) -> dict[str, Instr]:
        return dict(self.body)

    def is_row(self, name: str) -> bool:
        """Whether a value has one number per element (else one per row)."""
        return self._rows[name]

    @property
    def _rows(self) -> dict[str, bool]:
        rows: dict[str, bool] = {}
        for name, instr in self.body:
            if isinstance(instr, Load):
                rows[name] = instr.access != "scalar"
            elif isinstance(instr, Apply):
                rows[name] = any(rows[arg] for arg in instr.args)
            else:
                rows[name] = isinstance(instr, Rotate)
        return rows


class ProgramBuilder:
    """Writes a program; equal instructions share one value."""

    def __init__(self) -> None:
        self._body: dict[str, Instr] = {}
        self._known: dict[Instr, str] = {}

    def add(self, instr: Instr) -> str:
        name = self._known.get(instr)
        if name is None:
            name = f"x{len(self._body)}"
            self._body[name] = instr
            self._known[instr] = name
        return name

    def const(self, value: float) -> str:
        return self.add(Literal(float(value)))

    def apply(self, fn: str, *args: str) -> str:
        return self.add(Apply(fn, args))

    def build(self, result: str) -> Program:
        """The program that yields ``result``, without the instructions it does not need."""
        live = {result}
        for name, instr in reversed(self._body.items()):
            if name in live:
                live.update(operands_of(instr))
        return Program(tuple((n, i) for n, i in self._body.items() if n in live), result)


def operands_of(instr: Instr) -> tuple[str, ...]:
    """The values that an instruction reads."""
    if isinstance(instr, Apply):
        return instr.args
    return (instr.arg,) if isinstance(instr, RowReduce | Rotate) else ()
