"""Scalar programs as statements of a C-like language, driven by a table of spellings.

A row program becomes a few loops over the row: one per reduction, and one for the result. Row values
are computed again in each loop that needs them, which is cheaper than storing them; only a rotation,
which looks at other elements, makes the row be written to scratch first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx_autoperfect.kernel.program import Apply, Literal, Load, Program, Rotate, RowReduce, operands_of


@dataclass(frozen=True)
class Spelling:
    """How a language writes what programs need; templates take positional fields.

    Attributes:
        vector: the type of a value in a program.
        apply: function name -> expression over its arguments.
        literal: a float constant as a value.
        loop: opens the loop over a row; fields: width.
        end_loop: closes it.
        reduce_init, reduce_step, reduce_end: per reduction: the accumulator's start, one step
            (accumulator, value), and the scalar it becomes (accumulator).
    """

    vector: str
    apply: Mapping[str, str]
    literal: Callable[[float], str]
    loop: str
    end_loop: str
    reduce_init: Mapping[str, str]
    reduce_step: Mapping[str, str]
    reduce_end: Mapping[str, str]


@dataclass(frozen=True)
class RowEnvironment:
    """What surrounds a row program: how loads and rotations are written, and where the result goes.

    Attributes:
        load: an expression for a load inside the loop (or outside it, for scalars).
        spill: statement that stores a value to scratch; field: value.
        reload: expression that loads scratch inside the loop.
        rotate: statement that rotates the row in scratch.
        store: statement that stores the result; field: value.
        store_scalar: statement that stores a result that is one number per row; field: value.
    """

    load: Callable[[Load], str]
    spill: str
    reload: str
    rotate: Callable[[Rotate], str]
    store: str
    store_scalar: str = ""


class _RowEmitter:
    def __init__(self, program: Program, spelling: Spelling, env: RowEnvironment, width: str) -> None:
        self.program = program
        self.defs = program.defs
        self.spelling = spelling
        self.env = env
        self.width = width
        self.lines: list[str] = []
        self.in_scratch: str = ""

    def define(self, name: str) -> str:
        instr = self.defs[name]
        if name == self.in_scratch:
            expression = self.env.reload
        elif isinstance(instr, Load):
            expression = self.env.load(instr)
        elif isinstance(instr, Literal):
            expression = self.spelling.literal(instr.value)
        elif isinstance(instr, Apply):
            expression = self.spelling.apply[instr.fn].format(*instr.args)
        else:
            raise ValueError(f"{name} cannot be computed element by element")
        return f"const {self.spelling.vector} {name} = {expression};"

    def rows_for(self, name: str) -> list[str]:
        """The row values that a loop must compute to have ``name``, in order."""
        needed: set[str] = set()
        stack = [name]
        while stack:
            current = stack.pop()
            if current in needed or not self.program.is_row(current):
                continue
            needed.add(current)
            if current != self.in_scratch:
                stack += operands_of(self.defs[current])
        return [n for n, _ in self.program.body if n in needed]

    def loop(self, name: str, last: str) -> None:
        self.lines.append(self.spelling.loop.format(self.width))
        self.lines += ["  " + self.define(row) for row in self.rows_for(name)]
        self.lines += ["  " + last.format(name), self.spelling.end_loop]

    def run(self) -> list[str]:
        for name, instr in self.program.body:
            if isinstance(instr, RowReduce):
                accumulator = f"{name}_acc"
                self.lines.append(f"{self.spelling.vector} {accumulator} = {self.spelling.reduce_init[instr.fn]};")
                self.loop(instr.arg, self.spelling.reduce_step[instr.fn].replace("$acc", accumulator))
                end = self.spelling.reduce_end[instr.fn].replace("$acc", accumulator)
                self.lines.append(f"const {self.spelling.vector} {name} = {end};")
            elif isinstance(instr, Rotate):
                self.loop(instr.arg, self.env.spill)
                self.lines.append(self.env.rotate(instr))
                self.in_scratch = name
            elif not self.program.is_row(name):
                self.lines.append(self.define(name))
        if self.program.is_row(self.program.result):
            self.loop(self.program.result, self.env.store)
        elif self.env.store_scalar:
            self.lines.append(self.env.store_scalar.format(self.program.result))
        else:
            raise ValueError("this program must yield a row")
        return self.lines


def emit_row(program: Program, spelling: Spelling, env: RowEnvironment, width: str) -> list[str]:
    """Statements that run a row program; ``width`` is the row's length as an expression."""
    return _RowEmitter(program, spelling, env, width).run()


def emit_elements(program: Program, spelling: Spelling, load: Callable[[Load], str]) -> list[str]:
    """Statements that run an epilogue on one vector of elements; the last one returns the result."""
    lines = []
    for name, instr in program.body:
        if isinstance(instr, Load):
            expression = load(instr)
        elif isinstance(instr, Literal):
            expression = spelling.literal(instr.value)
        elif isinstance(instr, Apply):
            expression = spelling.apply[instr.fn].format(*instr.args)
        else:
            raise ValueError("an epilogue has no row operations")
        lines.append(f"const {spelling.vector} {name} = {expression};")
    return [*lines, f"return {program.result};"]
