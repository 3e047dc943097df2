"""One well-formed use of every op, with the type that its definition gives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.ops import BINARY, COMPARISONS, UNARY
from mlx_autoperfect.graph.types import Size, Type, parse_type

L = Size("L")


@dataclass(frozen=True)
class Sample:
    """``op(*inputs) -> output``, types in their text form."""

    op: ops.Op
    inputs: tuple[str, ...]
    output: str

    def __str__(self) -> str:
        return "-".join([self.op.name, getattr(self.op, "fn", ""), str(len(self.inputs))]).replace("--", "-")

    @property
    def types(self) -> tuple[Type, ...]:
        return tuple(map(parse_type, self.inputs))

    def graph(self, output: str | None = None) -> Graph:
        """The op alone as a graph; ``output`` replaces the declared type."""
        names = tuple(f"a{i}" for i in range(len(self.inputs)))
        node = Node(self.op, names, ("y",), (parse_type(output or self.output),), "nn.Thing a.b")
        return Graph("sample", tuple(zip(names, self.types, strict=True)), (), (), (node,), ("y",))


def _rows(op: ops.Op, *extra: str) -> Sample:
    return Sample(op, ("f16[1,L,64]", *extra), "f16[1,L,64]")


_LOGIC = frozenset({"and", "or"})

SAMPLES: tuple[Sample, ...] = (
    *(_rows(ops.Unary(fn)) for fn in sorted(UNARY - {"not"})),
    Sample(ops.Unary("not"), ("bool[3]",), "bool[3]"),
    *(
        Sample(ops.Binary(fn), ("f16[1,L,64]", "f16[64]"), f"{'bool' if fn in COMPARISONS else 'f16'}[1,L,64]")
        for fn in sorted(BINARY - _LOGIC)
    ),
    *(Sample(ops.Binary(fn), ("bool[2,3]", "bool[3]"), "bool[2,3]") for fn in sorted(_LOGIC)),
    Sample(ops.Select(), ("bool[1,L,64]", "bf16[1,L,64]", "bf16[]"), "bf16[1,L,64]"),
    Sample(ops.Cast(DType.BF16), ("f32[1,L,64]",), "bf16[1,L,64]"),
    _rows(ops.Silu()),
    _rows(ops.Gelu(tanh=True)),
    _rows(ops.SwiGLU(), "f16[1,L,64]"),
    _rows(ops.GeGLU(tanh=False), "f16[1,L,64]"),
    Sample(ops.Reduce("sum", (1, 2), keepdims=True), ("f32[4,5,6]",), "f32[4,1,1]"),
    Sample(ops.Reduce("max", (0,), keepdims=False), ("f32[4,5,6]",), "f32[5,6]"),
    _rows(ops.RmsNorm(1e-5)),
    _rows(ops.RmsNorm(1.0000000000000002e-06), "f16[64]"),
    _rows(ops.LayerNorm(1e-5), "f16[64]", "f16[64]"),
    _rows(ops.Softmax(precise=True)),
    Sample(ops.LogSumExp(), ("f16[1,L,64]",), "f16[1,L,1]"),
    Sample(ops.Rope(32, 1e4, 0.25, True), ("f16[1,4,L,64]", "i32[]"), "f16[1,4,L,64]"),
    Sample(ops.Rope(64, 0.0, 1.0, False), ("f16[1,4,L,64]", "i32[]", "f32[32]"), "f16[1,4,L,64]"),
    Sample(ops.Linear(), ("f16[1,L,64]", "w:q4g32.f16[96,64]"), "f16[1,L,96]"),
    Sample(ops.Linear(), ("f16[1,L,64]", "w:f16[96,64]", "f16[96]"), "f16[1,L,96]"),
    Sample(ops.Attention(0.125, True), ("f16[1,6,L,64]", "f16[1,2,T,64]", "f16[1,2,T,32]"), "f16[1,6,L,32]"),
    Sample(ops.Reshape((1, L, 4, 16)), ("f16[1,L,64]",), "f16[1,L,4,16]"),
    Sample(ops.Reshape((Size("L", 4), 16)), ("f16[1,L,64]",), "f16[4*L,16]"),
    Sample(ops.Transpose((0, 2, 1, 3)), ("f16[1,L,4,16]",), "f16[1,4,L,16]"),
    Sample(ops.Broadcast((1, L, 64)), ("f16[64]",), "f16[1,L,64]"),
    Sample(ops.Slice((0, 0), (2, 8), (1, 2)), ("f16[4,8]",), "f16[2,4]"),
    Sample(ops.Concat(1), ("f16[4,8]", "f16[4,2]"), "f16[4,10]"),
    Sample(ops.Embedding(), ("u32[1,L]", "w:q8g64.bf16[160,64]"), "bf16[1,L,64]"),
    Sample(ops.CallBlock(3), ("f16[1,L,64]",), "f16[1,L,64]"),
)

# Types that are wrong for the op whatever is declared: (op, inputs, word that the message holds).
MISFITS: tuple[tuple[ops.Op, tuple[str, ...], str], ...] = (
    (ops.Binary("add"), ("f16[1,L,64]", "f16[1,L,32]"), "broadcast"),
    (ops.Select(), ("bool[3]", "f16[2,4]", "f16[]"), "broadcast"),
    (ops.RmsNorm(1e-5), ("f16[1,L,64]", "f16[32]"), "rms_norm"),
    (ops.LayerNorm(1e-5), ("f16[1,L,64]", "f16[64]", "f16[1]"), "layer_norm"),
    (ops.Linear(), ("f16[1,L,64]", "f16[96,64]"), "not a weight"),
    (ops.Linear(), ("f16[1,L,64]", "w:f16[64,96]"), "does not fit"),
    (ops.Linear(), ("f16[1,L,64]", "w:f16[96,64]", "f16[64]"), "bias"),
    (ops.Attention(1.0, False), ("f16[6,L,64]", "f16[1,2,T,64]", "f16[1,2,T,64]"), "four axes"),
    (ops.Attention(1.0, False), ("f16[1,6,L,64]", "f16[1,2,T,32]", "f16[1,2,T,64]"), "do not fit"),
    (ops.Attention(1.0, False), ("f16[1,6,L,64]", "f16[1,4,T,64]", "f16[1,4,T,64]"), "heads"),
    (ops.Reshape((1, L, 4, 8)), ("f16[1,L,64]",), "elements"),
    (ops.Transpose((0, 1)), ("f16[1,L,64]",), "transpose"),
    (ops.Transpose((0, 1, 1)), ("f16[1,L,64]",), "transpose"),
    (ops.Broadcast((1, L, 32)), ("f16[64]",), "broadcast"),
)


def other_dtype(text: str) -> str:
    """A type's text with another element type."""
    return text.replace("bf16", "f32") if text.startswith("bf16") else re.sub(r"^(f16|f32|bool)", "bf16", text)


def other_shape(text: str) -> str:
    """A type's text with one more axis."""
    return text.replace("]", ",1]")
