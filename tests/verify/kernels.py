"""Candidates for the judge: right kernels in every format, and wrong ones made by editing their sources."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

import mlx_autoperfect_cpu
from mlx_autoperfect.capture.leaf import capture_linear
from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.fusion.partition import partition
from mlx_autoperfect.fusion.region import Region
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect_cpu.render import render
from tests.models import Spec, regions_of

DEFAULT = Spec()
_TEMPLATES = Path(mlx_autoperfect_cpu.__file__).parent / "templates"


@dataclass(frozen=True)
class Candidate:
    """A region, the kernel that shall compute it, and the source that does."""

    region: Region
    kernel: Kernel
    source: Source


def candidate(region: Region, many_rows: bool = False) -> Candidate:
    kernel = lower(region, many_rows=many_rows)
    assert isinstance(kernel, Kernel), kernel
    source = render(kernel)
    assert isinstance(source, Source), source
    return Candidate(region, kernel, source)


@cache
def model_regions(spec: Spec) -> dict[str, Region]:
    """Regions of a tiny model by ``regime.what.name``."""
    return dict(regions_of(spec))


def leaf(dtype: str, quant: tuple[int, int] | None, many_rows: bool, rows: int = 43) -> Candidate:
    """One linear layer; 43 results leave a tail in vectors of any width."""
    module: nn.Module = nn.Linear(128, rows, bias=False)
    module.set_dtype(getattr(mx, dtype))
    if quant is not None:
        module = nn.QuantizedLinear.from_linear(module, quant[1], quant[0])
    (region,) = partition(capture_linear(module)).regions
    return candidate(region, many_rows)


def flattened(text: str, prefixes: tuple[str, ...], seen: set[str] | None = None) -> str:
    """``text`` with the templates whose names start with ``prefixes`` in place of their includes."""
    done = set() if seen is None else seen

    def expand(match: re.Match[str]) -> str:
        name = match[1]
        if not name.startswith(prefixes):
            return match[0]
        if name in done:
            return ""
        done.add(name)
        return flattened((_TEMPLATES / name).read_text().replace("#pragma once", ""), prefixes, done)

    return re.sub(r'#include "([a-z_0-9]+\.h)"', expand, text)


@dataclass(frozen=True)
class Mutation:
    """A seeded bug: which kernel, what is replaced in its source, and the codes that may reject it."""

    region: str
    old: str
    new: str
    reasons: frozenset[Reason]
    spec: Spec = DEFAULT
    inline: tuple[str, ...] = ()
    make: Callable[[], Candidate] | None = None

    def right(self) -> Candidate:
        return self.make() if self.make is not None else candidate(model_regions(self.spec)[self.region])

    def wrong(self) -> Candidate:
        right = self.right()
        text = flattened(right.source.text, self.inline) if self.inline else right.source.text
        assert self.old in text, f"the seeded bug has no place any more: {self.old!r}"
        return replace(right, source=replace(right.source, text=text.replace(self.old, self.new)))


_MISMATCH = frozenset({Reason.NUMERIC_MISMATCH})
_HEADS = "(head * group + row % group)"

MUTATIONS: dict[str, Mutation] = {
    "drops the residual": Mutation("decode.block.o_residual", "(x1 + x0)", "(x1 - x1 + x0)", _MISMATCH),
    "subtracts the residual": Mutation("decode.block.o_residual", "(x1 + x0)", "(x1 - x0)", _MISMATCH),
    "another eps": Mutation("decode.block.rms_qkv", "V(1e-05f)", "V(1e-06f)", _MISMATCH),
    "no weight of the norm": Mutation("decode.block.rms_qkv", "(x9 * x1)", "(x9 * V(1.f))", _MISMATCH),
    "gate and up swapped": Mutation(
        "decode.block.rms_gate_up_swiglu", "kWeights[] = {2, 5}", "kWeights[] = {5, 2}", _MISMATCH
    ),
    "another matrix": Mutation("decode.block.rms_qkv", "kWeights[] = {8}", "kWeights[] = {5}", _MISMATCH),
    "no sigmoid": Mutation("decode.block.rms_gate_up_swiglu", "vsigmoid(x0)", "V(0.5f)", _MISMATCH),
    "another theta": Mutation("decode.block.rope", "10000.0f", "10500.0f", _MISMATCH),
    "position off by one": Mutation("decode.block.rope", "a + c.symbols[1]", "a + c.symbols[1] + 1", _MISMATCH),
    "no offset": Mutation("prefill.block.rope", "a + c.symbols[1]", "a", _MISMATCH),
    "another scale": Mutation(
        "decode.block.attention", "scale = 0.1767766952966369f", "scale = 0.18f", _MISMATCH
    ),
    "no causal mask": Mutation("prefill.block.attention", "32, 32, true", "32, 32, false", _MISMATCH),
    "causal mask off by one": Mutation(
        "prefill.block.attention", "T - L + row / group + 1 : T",
        "min64(T - L + row / group + 2, T) : T", _MISMATCH, inline=("attention",),
    ),
    "forgets the oldest key": Mutation(
        "decode.block.attention", "head * k_stride[1] + t * k_stride[2]",
        "head * k_stride[1] + (t ? t : T - 1) * k_stride[2]",
        _MISMATCH | {Reason.NON_FINITE}, inline=("attention",),
    ),
    "heads grouped the other way": Mutation(
        "decode.block.attention", _HEADS, "(row % group * HKV + head)", _MISMATCH, inline=("attention",),
    ),
    "tail not written": Mutation(
        "", "else store(out, value, valid);", "else {}", frozenset({Reason.UNWRITTEN_OUTPUT}),
        inline=("matvec",), make=lambda: leaf("float16", (4, 32), False),
    ),
    "a head not written": Mutation(
        "decode.block.rope", "return 4;", "return 3;", frozenset({Reason.UNWRITTEN_OUTPUT})
    ),
    "writes an input": Mutation(
        "decode.block.rope", "f16* p_i0 = static_cast<const f16*>(c.in[0].data) + a * (0) + b * (32);",
        "f16* p_i0 = static_cast<const f16*>(c.in[0].data) + a * (0) + b * (32);"
        " const_cast<f16*>(p_i0)[1] = p_i0[0];", frozenset({Reason.INPUT_MODIFIED}),
    ),
    "another result each time": Mutation(
        "decode.block.o_residual", "return x2;", "static int calls = 0; return x2 + V(float(++calls & 1023));",
        frozenset({Reason.NON_DETERMINISTIC, Reason.UNWRITTEN_OUTPUT}),
    ),
    "not a number": Mutation("decode.block.o_residual", "return x2;", "return x2 / V(0.f) * V(0.f);",
                             frozenset({Reason.NON_FINITE})),
    "zeros": Mutation("decode.block.o_residual", "return x2;", "return V(0.f);", _MISMATCH),
}  # fmt: skip
