"""The text form of a kernel: printed for people, parsed back without loss.

kernel rms_gate_up_swiglu 72da98bb7806ebb7
  in   i0 f16[1,L,576]
  in   w0 f16[576]
  in   w1 w:q4g32.f16[1536,576]
  in   w2 w:q4g32.f16[1536,576]
  out  t3 f16[1,L,1536]
  anchor matvec {rows=L, width=576}
  prologue
    x0 = load i0 row (576 0)
    ...
    yield x7
  job {weights=(w1 w2), out=t3}
    x0 = load w1 acc ()
    ...
    yield x4
  schedule {}
"""

from __future__ import annotations

import re
from dataclasses import fields
from types import UnionType
from typing import Any, get_type_hints

from mlx_autoperfect.graph.text import attribute_text
from mlx_autoperfect.graph.types import Size, parse_dim, parse_type
from mlx_autoperfect.kernel.ir import (
    AttentionAnchor,
    Gemm,
    GemmJob,
    Kernel,
    MatMul,
    MatVec,
    Operand,
    RowJob,
    RowMap,
    Schedule,
)
from mlx_autoperfect.kernel.program import Apply, Instr, Literal, Load, Program, Rotate, RowReduce

_OPCODES: dict[str, type[Instr]] = {cls.opcode: cls for cls in (Load, Literal, Apply, RowReduce, Rotate)}
_ANCHORS: dict[str, Any] = {cls.name: cls for cls in (RowMap, MatVec, MatMul, AttentionAnchor)}


def _attributes(item: Any) -> str:
    parts = [
        f"{f.name}={attribute_text(value)}"
        for f in fields(item)
        if not isinstance(value := getattr(item, f.name), Program) and f.name != "jobs"
    ]
    return "{" + ", ".join(parts) + "}"


def _program_lines(program: Program) -> list[str]:
    lines = []
    for name, instr in program.body:
        words = [attribute_text(getattr(instr, f.name)) or '""' for f in fields(instr)]
        lines.append(f"    {name} = {instr.opcode} {' '.join(words)}")
    return [*lines, f"    yield {program.result}"]


def print_kernel(kernel: Kernel) -> str:
    """The kernel as text."""
    lines = [f"kernel {kernel.name} {kernel.signature}"]
    for word, operands in (("in ", kernel.inputs), ("out", kernel.outputs)):
        lines += [f"  {word}  {o.name} {o.type}{' strided' if o.strided else ''}" for o in operands]
    lines += [f"  scalar {name}" for name in kernel.scalars]
    anchor = kernel.anchor
    lines.append(f"  anchor {anchor.name} {_attributes(anchor)}")
    if isinstance(anchor, Gemm):
        lines += ["  prologue", *_program_lines(anchor.prologue)]
    if isinstance(anchor, Gemm | RowMap):
        for job in anchor.jobs:
            program = job.epilogue if isinstance(job, GemmJob) else job.program
            lines += [f"  job {_attributes(job)}", *_program_lines(program)]
    lines.append(f"  schedule {kernel.schedule}")
    return "\n".join(lines) + "\n"


_WORDS = re.compile(r"\([^)]*\)|\S+")


def _parse_value(hint: Any, text: str) -> Any:
    arguments: tuple[Any, ...] = getattr(hint, "__args__", ())
    if isinstance(hint, UnionType) and Size in arguments:
        return parse_dim(text)
    if getattr(hint, "__origin__", None) is tuple:
        parts = text.strip("()").split()
        return tuple(_parse_value(arguments[0], part) for part in parts)
    if hint is bool:
        return {"true": True, "false": False}[text]
    if hint is str:
        return "" if text == '""' else text
    return hint(text)


def _parse_instr(line: str) -> tuple[str, Instr]:
    name, _, rest = line.partition(" = ")
    opcode, *words = _WORDS.findall(rest)
    cls = _OPCODES[opcode]
    hints = get_type_hints(cls)
    values = {f.name: _parse_value(hints[f.name], word) for f, word in zip(fields(cls), words, strict=True)}
    return name, cls(**values)


def _parse_attributes(cls: type[Any], text: str) -> dict[str, Any]:
    hints = get_type_hints(cls)
    pairs = (part.split("=", 1) for part in text.strip("{}").split(", ") if part)
    return {key: _parse_value(hints[key], value) for key, value in pairs}


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = [line.strip() for line in text.splitlines() if line.strip()]
        self.at = 0

    def next(self) -> tuple[str, str]:
        word, _, rest = self.lines[self.at].partition(" ")
        self.at += 1
        return word, rest.strip()

    def peek(self) -> str:
        return self.lines[self.at].partition(" ")[0] if self.at < len(self.lines) else ""

    def program(self) -> Program:
        body: list[tuple[str, Instr]] = []
        while self.peek() != "yield":
            body.append(_parse_instr(self.lines[self.at]))
            self.at += 1
        return Program(tuple(body), self.next()[1])


def _operand(rest: str) -> Operand:
    name, type_, *flags = rest.split()
    return Operand(name, parse_type(type_), "strided" in flags)


def parse_kernel(text: str) -> Kernel:
    """Reads the text form.

    Raises:
        ValueError: text that is not a kernel; names the line.
    """
    reader = _Reader(text)
    try:
        return _parse(reader)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        at = reader.lines[min(reader.at, len(reader.lines)) - 1] if reader.lines else ""
        raise ValueError(f"not the text of a kernel, near {at!r}: {error}") from error


def _parse(reader: _Reader) -> Kernel:
    name, signature = reader.next()[1].split()
    operands: dict[str, list[Any]] = {"in": [], "out": [], "scalar": []}
    while (word := reader.peek()) in operands:
        rest = reader.next()[1]
        operands[word].append(rest if word == "scalar" else _operand(rest))
    anchor_name, _, attributes = reader.next()[1].partition(" ")
    cls = _ANCHORS[anchor_name]
    values = _parse_attributes(cls, attributes)
    if issubclass(cls, Gemm):
        if reader.next()[0] != "prologue":
            raise ValueError("a matrix product has a prologue")
        values["prologue"] = reader.program()
    if issubclass(cls, Gemm | RowMap):
        job_cls: Any = GemmJob if issubclass(cls, Gemm) else RowJob
        field = "epilogue" if issubclass(cls, Gemm) else "program"
        jobs = []
        while reader.peek() == "job":
            job = _parse_attributes(job_cls, reader.next()[1])
            jobs.append(job_cls(**job, **{field: reader.program()}))
        values["jobs"] = tuple(jobs)
    knobs = reader.next()[1].strip("{}")
    pairs = tuple((k, int(v)) for k, v in (part.split("=") for part in knobs.split(", ") if part))
    return Kernel(
        name, signature, tuple(operands["in"]), tuple(operands["out"]), tuple(operands["scalar"]),
        cls(**values), Schedule(pairs),
    )  # fmt: skip
