"""Renders kernels as C++: the table of spellings, and the few structs that complete a template."""

from __future__ import annotations

from collections.abc import Callable

from mlx_autoperfect.codegen.emit import RowEnvironment, Spelling, emit_elements, emit_row
from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.dtypes import Affine, Dense, DType, Format
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.graph.types import ArrayType, Dim, Size, WeightType
from mlx_autoperfect.kernel.abi import first_index
from mlx_autoperfect.kernel.ir import AttentionAnchor, Gemm, Kernel, MatMul, RowMap
from mlx_autoperfect.kernel.program import Load, Rotate

# Every kernel exports this name: kernels that differ only in sizes are then the same source.
ENTRY = "ap_entry"
# Order of the symbols that a launch passes (see mlx_autoperfect.runtime.assemble.SYMBOLS).
SYMBOL = {"L": 0, "offset": 1, "T": 2, "C": 3}

_TYPES = {DType.F16: "f16", DType.BF16: "bf16", DType.F32: "f32"}
_BITS = frozenset({4, 8})
_GROUPS = frozenset({32, 64, 128})


def _literal(value: float) -> str:
    text = repr(float(value))
    return f"V({text if any(c in text for c in '.en') else text + '.'}f)"


SPELLING = Spelling(
    vector="V",
    apply={
        "neg": "(-{0})", "exp": "vexp({0})", "log": "vlog({0})", "tanh": "vtanh({0})", "erf": "verf({0})",
        "sqrt": "vsqrt({0})",
        "rsqrt": "vrsqrt({0})", "sigmoid": "vsigmoid({0})", "abs": "vabs({0})", "add": "({0} + {1})",
        "sub": "({0} - {1})", "mul": "({0} * {1})", "div": "({0} / {1})", "max": "vmax({0}, {1})",
        "min": "vmin({0}, {1})", "square": "({0} * {0})",
    },
    literal=_literal,
    loop="for_row({0}, [&](int64_t k, auto... n) {{",
    end_loop="});",
    reduce_init={"sum": "V(0.f)", "max": "V(-INFINITY)"},
    reduce_step={"sum": "$acc = $acc + keep({0}, 0.f, n...);", "max": "$acc = vmax($acc, keep({0}, -INFINITY, n...));"},
    reduce_end={"sum": "V(hsum($acc))", "max": "V(hmax($acc))"},
)  # fmt: skip


def _format(format_: Format) -> str:
    if isinstance(format_, Dense):
        return f"Dense<{_TYPES[format_.dtype]}>"
    return f"Affine<{format_.bits}, {format_.group}, {_TYPES[format_.scale]}>"


def _dim(dim: Dim) -> str:
    if isinstance(dim, Size):
        symbol = f"c.symbols[{SYMBOL[dim.symbol]}]"
        return symbol if dim.factor == 1 else f"{dim.factor} * {symbol}"
    return str(dim)


class _Renderer:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.index = first_index(kernel)
        self.types = {o.name: o.type for o in (*kernel.inputs, *kernel.outputs)}

    def scalar_type(self, name: str) -> str:
        type_ = self.types[name]
        assert isinstance(type_, ArrayType)
        return _TYPES[type_.dtype]

    def pointer(self, name: str) -> str:
        """Declares a pointer to an input."""
        type_ = self.scalar_type(name)
        return f"const {type_}* p_{name} = static_cast<const {type_}*>(c.in[{self.index[name]}].data);"

    def row_load(self, instr: Load) -> str:
        return f"V(to_float(*p_{instr.operand}))" if instr.access == "scalar" else f"load(p_{instr.operand} + k, n...)"

    def row_pointers(self, loads: list[Load], place: Callable[[Load], str]) -> list[str]:
        """Pointers to the operands of a row program, moved to the current row."""
        lines = []
        for load in dict.fromkeys(loads):
            line = self.pointer(load.operand)
            lines.append(line[:-1] + f" + {place(load)};" if load.access == "row" else line)
        return lines

    def gemm(self, anchor: Gemm) -> tuple[str, str]:
        loads = [i for _, i in anchor.prologue.body if isinstance(i, Load)]
        pointers = self.row_pointers(loads, lambda load: "m * K")
        env = RowEnvironment(self.row_load, "", "", lambda rotate: "", "store(dst + k, {0}, n...);")
        body = emit_row(anchor.prologue, SPELLING, env, "K")
        parts = [
            "struct Pro {",
            "  static inline void row(const ap_ctx& c, int64_t m, int64_t K, float* dst) {",
            *("    " + line for line in (*pointers, *body)),
            "  }",
            "};",
        ]
        names = []
        for number, job in enumerate(anchor.jobs):
            weight = self.types[job.weights[0]]
            assert isinstance(weight, WeightType)
            names.append(f"Job{number}")
            accumulators = {w: i for i, w in enumerate(job.weights)}

            def load(instr: Load, accumulators: dict[str, int] = accumulators) -> str:
                if instr.access == "acc":
                    return f"acc[{accumulators[instr.operand]}]"
                data = f"static_cast<const {self.scalar_type(instr.operand)}*>(c.in[{self.index[instr.operand]}].data)"
                if instr.access == "scalar":
                    return f"V(to_float(*{data}))"
                place = "m * N + n" if instr.access == "element" else "n"
                return f"load({data} + {place}, valid)"

            body = emit_elements(job.epilogue, SPELLING, load)
            parts += [
                f"struct Job{number} {{",
                f"  using Format = {_format(weight.format)};",
                f"  using Out = {self.scalar_type(job.out)};",
                f"  static constexpr int kWeights[] = {{{', '.join(str(self.index[w]) for w in job.weights)}}};",
                f"  static constexpr int kOut = {self.index[job.out]};",
                "  static inline V elem(const ap_ctx& c, int64_t m, int64_t n, int64_t N, int valid, const V* acc) {",
                *("    " + line for line in body),
                "  }",
                "};",
            ]
        template = "MatMul" if isinstance(anchor, MatMul) else "MatVec"
        header = template.lower() + ".h"
        instance = f"{template}<Pro, {template}Schedule<{self.knobs()}>, {', '.join(names)}>"
        return header, "\n".join([*parts, f"AP_KERNEL({ENTRY}, {instance})"])

    def knobs(self) -> str:
        return ", ".join(str(value) for _, value in self.kernel.schedule.knobs)

    def rowmap(self, anchor: RowMap) -> tuple[str, str]:
        parts, names = [], []
        for number, job in enumerate(anchor.jobs):
            names.append(f"Job{number}")
            loads = [i for _, i in job.program.body if isinstance(i, Load)]
            pointers = self.row_pointers(
                loads, lambda load: f"a * ({_dim(load.strides[0])}) + b * ({_dim(load.strides[1])})"
            )
            out = self.scalar_type(job.out)
            pointers.append(
                f"{out}* dst = static_cast<{out}*>(c.out[{self.index[job.out]}].data)"
                f" + a * ({_dim(job.strides[0])}) + b * ({_dim(job.strides[1])});"
            )
            env = RowEnvironment(
                self.row_load, "store(tmp + k, {0}, n...);", "load(tmp + k, n...)",
                self.rotate, "store(dst + k, {0}, n...);", "store(dst, {0}, 1);",
            )  # fmt: skip
            body = emit_row(job.program, SPELLING, env, str(anchor.width))
            parts += [
                f"struct Job{number} {{",
                f"  static inline int64_t heads(const ap_ctx& c) {{ return {_dim(job.heads)}; }}",
                "  static inline void row(const ap_ctx& c, int64_t a, int64_t b, float* tmp) {",
                *("    " + line for line in (*pointers, *body)),
                "  }",
                "};",
            ]
        knobs = ", ".join(filter(None, (str(anchor.width), self.knobs())))
        instance = f"RowMap<RowMapSchedule<{knobs}>, {', '.join(names)}>"
        return "rowmap.h", "\n".join([*parts, f"AP_KERNEL({ENTRY}, {instance})"])

    def rotate(self, instr: Rotate) -> str:
        common = f"{self.types_width()}, {instr.dims}, a + c.symbols[{SYMBOL['offset']}]"
        traditional = str(instr.traditional).lower()
        if instr.freqs:
            freqs = f"static_cast<const float*>(c.in[{self.index[instr.freqs]}].data)"
            return f"rope(tmp, {common}, {freqs}, {instr.scale!r}f, {traditional}, rope_table());"
        return f"rope(tmp, {common}, {instr.base!r}f, {instr.scale!r}f, {traditional}, rope_table());"

    def types_width(self) -> int:
        anchor = self.kernel.anchor
        assert isinstance(anchor, RowMap)
        return anchor.width

    def attention(self, anchor: AttentionAnchor) -> tuple[str, str]:
        types = ", ".join(self.scalar_type(name) for name in (anchor.q, anchor.k, anchor.out))
        flags = [("QBLHD", anchor.q_rows_first), ("OutBLHD", anchor.out_rows_first)]
        causal = str(anchor.causal).lower()
        text = "\n".join(
            [
                "struct Ops {",
                f"  static constexpr int q = {self.index[anchor.q]}, k = {self.index[anchor.k]},"
                f" v = {self.index[anchor.v]}, out = {self.index[anchor.out]};",
                f"  static constexpr float scale = {anchor.scale!r}f;",
                *(f"  static constexpr bool {name} = true;" for name, flag in flags if flag),
                "};",
                f"AP_KERNEL({ENTRY}, Attention<AttnTypes<{types}>, {anchor.width}, {anchor.value_width}, {causal},"
                f" AttentionSchedule<{self.knobs() or _queries(anchor.heads // anchor.groups)}>, Ops>)",
            ]
        )
        return "attention.h", text


def _queries(group: int) -> int:
    """Query rows that share a pass over keys: the group of a key head, or a divisor of it, up to 4."""
    return max(n for n in range(1, 5) if group % n == 0)


def _refuse(kernel: Kernel) -> Failure | None:
    """What the templates cannot do."""
    for operand in (*kernel.inputs, *kernel.outputs):
        type_ = operand.type
        if isinstance(type_, WeightType):
            format_ = type_.format
            if isinstance(format_, Affine) and not (format_.bits in _BITS and format_.group in _GROUPS):
                detail = f"{format_.bits} bits in groups of {format_.group}; this backend has 4 and 8 in 32, 64, 128"
                return Failure(Stage.RENDER, Reason.UNSUPPORTED_FORMAT, detail, kernel.name)
            dtype = format_.scale if isinstance(format_, Affine) else format_.dtype
        else:
            dtype = type_.dtype
        if dtype not in _TYPES:
            return Failure(Stage.RENDER, Reason.UNSUPPORTED_FORMAT, f"operand {operand.name} is {dtype}", kernel.name)
    return None


def render(kernel: Kernel) -> Source | Failure:
    """The C++ source of a kernel, or why this backend has none."""
    refused = _refuse(kernel)
    if refused is not None:
        return refused
    renderer = _Renderer(kernel)
    anchor = kernel.anchor
    if isinstance(anchor, RowMap):
        header, body = renderer.rowmap(anchor)
    elif isinstance(anchor, AttentionAnchor):
        header, body = renderer.attention(anchor)
    else:
        header, body = renderer.gemm(anchor)
    text = f'#include "{header}"\n#include "program.h"\nusing namespace ap;\n\n{body}\n'
    return Source("cpu", kernel, text)
