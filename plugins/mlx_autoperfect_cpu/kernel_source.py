"""Turns the body that a ``cpu_kernel`` is given into a complete C++ source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

ENTRY = "ap_entry"
"""Name of the exported function."""
GRID, INIT, FIRST_DIM = 0, 3, 5
"""Positions in ``symbols``: the grid's three sizes, the initial value (whole, bits of a double), output sizes."""

TYPES: dict[mx.Dtype, str] = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.float64: "double",
    mx.complex64: "std::complex<float>",
}

TemplateValue = mx.Dtype | int | bool
_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True)
class Signature:
    """All that the generated source depends on besides the user's text.

    Attributes:
        inputs: name, dtype, and whether it is a scalar (no axes), of each input.
        outputs: name and dtype of each output.
        template: name and value of each template argument.
        grid: whether the body runs once per point of a grid, else once.
        init: whether outputs are filled first.
    """

    inputs: tuple[tuple[str, mx.Dtype, bool], ...]
    outputs: tuple[tuple[str, mx.Dtype], ...]
    template: tuple[tuple[str, TemplateValue], ...]
    grid: bool
    init: bool


def render(name: str, source: str, header: str, signature: Signature) -> str:
    """The C++ source; compiler messages name the user's text ``<name>`` and ``<name> (header)``."""
    parameters: list[str] = []
    arguments: list[str] = []
    for i, (argument, dtype, scalar) in enumerate(signature.inputs):
        star, deref = ("&", "*") if scalar else ("*", "")
        parameters.append(f"const {TYPES[dtype]}{star} {argument}")
        arguments.append(f"{deref}static_cast<const {TYPES[dtype]}*>(c->in[{i}].data)")
        for suffix, kind, field in _PROPERTIES:
            if re.search(rf"\b{argument}{suffix}\b", source):
                parameters.append(f"{kind} {argument}{suffix}")
                arguments.append(f"c->in[{i}].{field}")
    for i, (argument, dtype) in enumerate(signature.outputs):
        parameters.append(f"{TYPES[dtype]}* __restrict {argument}")
        arguments.append(f"static_cast<{TYPES[dtype]}*>(c->out[{i}].data)")
    if signature.grid:
        parameters += ["const uint3 thread_position_in_grid", "const uint3 threads_per_grid"]
    used = {dtype for _, dtype, _ in signature.inputs} | {dtype for _, dtype in signature.outputs}
    used |= {value for _, value in signature.template if isinstance(value, mx.Dtype)}
    lines = [
        '#include "types.h"',
        "#include <cmath>",
        *(["#include <complex>"] if mx.complex64 in used else []),
        f'#line 1 "{name} (header)"',
        header,
        f'#line 1 "{name} (generated)"',
        f"static inline __attribute__((always_inline)) void ap_body({', '.join(parameters)}) {{",
        *(_constant(key, value) for key, value in signature.template),
        f'#line 1 "{name}"',
        source,
        f'\n#line 1 "{name} (generated)"',
        "}",
        *_entry(signature, arguments),
        "",
    ]
    return "\n".join(lines)


_PROPERTIES = (
    ("_shape", "const int32_t*", "shape"),
    ("_strides", "const int64_t*", "strides"),
    ("_ndim", "const int64_t", "ndim"),
)


def _constant(name: str, value: TemplateValue) -> str:
    if isinstance(value, mx.Dtype):
        return f"using {name} = {TYPES[value]};"
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    return f"constexpr {'int' if value in _INT32 else 'int64_t'} {name} = {value};"


def _entry(signature: Signature, arguments: Sequence[str]) -> list[str]:
    """The function of the binary interface: fills the outputs, then runs the body at every point."""
    lines = [f'extern "C" void {ENTRY}(const ap_ctx* c) {{']
    if signature.init:
        for i, (_, dtype) in enumerate(signature.outputs):
            value = f"ap_types::initial<{TYPES[dtype]}>(c->symbols[{INIT}], c->symbols[{INIT + 1}])"
            lines.append(f"  ap_types::fill(c, c->out[{i}], {value});")
        lines.append("  ap_barrier(c);")
    if signature.grid:
        sizes = ", ".join(f"static_cast<uint32_t>(c->symbols[{GRID + axis}])" for axis in range(3))
        call = ", ".join([*arguments, "position", "grid"])
        lines.append(f"  const uint3 grid{{{sizes}}};")
        lines.append(f"  ap_types::for_each_point(c, grid, [&](uint3 position) {{ ap_body({call}); }});")
    else:
        lines.append(f"  ap_body({', '.join(arguments)});")
    return [*lines, "}"]
