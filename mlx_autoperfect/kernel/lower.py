"""From a region to a kernel: anchor, programs and ABI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.fusion.views import base_of, is_view, layout_of, layout_within
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph, Node
from mlx_autoperfect.graph.types import ArrayType, Dim, Shape, Size, product
from mlx_autoperfect.kernel.expand import EXPAND, FUNCTIONS
from mlx_autoperfect.kernel.ir import (
    Anchor,
    AttentionAnchor,
    GemmJob,
    Kernel,
    MatMul,
    MatVec,
    Operand,
    RowJob,
    RowMap,
    Schedule,
)
from mlx_autoperfect.kernel.program import Instr, Load, Program, ProgramBuilder, Rotate


class _Unsupported(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class _Writer:
    """Writes the program of some nodes of a region; ``leaf`` says how values from outside are loaded."""

    graph: Graph
    width: int
    leaf: Callable[[str, str], Instr]
    builder: ProgramBuilder = field(default_factory=ProgramBuilder)
    names: dict[str, str] = field(default_factory=dict)

    def value(self, name: str) -> str:
        base = base_of(self.graph, name)
        if base in self.names:
            return self.names[base]
        constant = self.graph.constant_of.get(base)
        if constant is not None:
            if len(constant.data) != 1:
                raise _Unsupported(Reason.UNSUPPORTED_OP, f"a constant of {len(constant.data)} elements")
            return self.builder.const(constant.data[0])
        return self.builder.add(self.leaf(base, name))

    def write(self, nodes: list[Node], result: str) -> Program:
        for node in nodes:
            self.names[node.output] = self._node(node)
        return self.builder.build(self.value(result))

    def _node(self, node: Node) -> str:
        op = node.op
        if isinstance(op, ops.Unary | ops.Binary) and op.fn not in FUNCTIONS:
            raise _Unsupported(Reason.UNSUPPORTED_OP, f"no kernel computes {op.fn}")
        if isinstance(op, ops.Rope):
            freqs = base_of(self.graph, node.inputs[2]) if len(node.inputs) > 2 else ""
            if freqs and _array(self.graph, freqs).dtype is not DType.F32:
                raise _Unsupported(Reason.UNSUPPORTED_OP, "frequencies that are not float32")
            arg = self.value(node.inputs[0])
            offset = base_of(self.graph, node.inputs[1])
            return self.builder.add(Rotate(arg, offset, op.dims, op.base, op.scale, op.traditional, freqs))
        expand = EXPAND.get(type(op))
        if expand is None:
            raise _Unsupported(Reason.UNSUPPORTED_OP, f"no kernel computes {op.name}")
        return expand(self.builder, op, tuple(self.value(v) for v in node.inputs), self.width)


def _array(graph: Graph, value: str) -> ArrayType:
    type_ = graph.types[value]
    assert isinstance(type_, ArrayType)
    return type_


def _fixed(dim: Dim, what: str) -> int:
    if isinstance(dim, Size):
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"{what} is {dim}, not fixed")
    return dim


def _rows(shape: Shape) -> Dim:
    try:
        return product(shape[:-1])
    except ValueError as error:
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, str(error)) from error


def _lower_gemm(region: Region, anchor: type[MatVec] | type[MatMul]) -> Anchor:
    graph = region.graph
    compute = [node for node in graph.nodes if not is_view(node)]
    products = [node for node in compute if isinstance(node.op, ops.Linear)]
    x = products[0].inputs[0]
    x_type = _array(graph, x)
    width = _fixed(x_type.shape[-1], "the width")
    first = compute.index(products[0])
    before = [n for n in compute[:first] if _feeds(graph, n, x)]
    after = [n for n in compute if n not in before and n not in products]

    def load_row(base: str, name: str) -> Instr:
        shape = _array(graph, name).shape
        if shape == x_type.shape and _in_order(graph, name):
            return Load(base, "row", (width, 0))
        return Load(base, "column" if shape == (width,) else _scalar(graph, name))

    prologue = _Writer(graph, width, load_row).write(before, x)

    def job(result: str) -> GemmJob:
        nodes = [n for n in after if _feeds(graph, n, result)]
        made = [n for n in products if _feeds(graph, n, result)]
        columns = _fixed(made[0].types[0].shape[-1], "the number of columns")
        weights = tuple(n.inputs[1] for n in made)

        def load_element(base: str, name: str) -> Instr:
            shape = _array(graph, name).shape
            if shape == made[0].types[0].shape and _in_order(graph, name):
                return Load(base, "element")
            return Load(base, "column" if shape == (columns,) else _scalar(graph, name))

        writer = _Writer(graph, columns, load_element)
        for node in made:
            accumulated = writer.builder.add(Load(node.inputs[1], "acc"))
            if len(node.inputs) > 2:
                bias = writer.builder.add(Load(base_of(graph, node.inputs[2]), "column"))
                accumulated = writer.builder.apply("add", accumulated, bias)
            writer.names[node.output] = accumulated
        layout = layout_within(graph, base_of(graph, result), result)
        if layout is None or not layout.order_preserving:
            raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"%{result} is not written in order")
        return GemmJob(weights, writer.write(nodes, result), result)

    return anchor(_rows(x_type.shape), width, prologue, tuple(job(result) for result in graph.outputs))


def _in_order(graph: Graph, value: str) -> bool:
    layout = layout_of(graph, value)
    return layout is not None and layout.order_preserving


def _scalar(graph: Graph, value: str) -> str:
    if _array(graph, value).shape != ():
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"an operand of shape {graph.types[value]}")
    return "scalar"


def _feeds(graph: Graph, node: Node, value: str) -> bool:
    """Whether ``value`` is computed from ``node`` (or is its result)."""
    producer = graph.producer.get(value)
    if producer is None:
        return False
    return producer is node or any(_feeds(graph, node, v) for v in producer.inputs)


def _row_axes(shape: Shape, strides: Shape, position: int | None) -> tuple[Dim, Dim, Dim, Dim]:
    """``(rows, heads, row stride, head stride)`` of rows of an array, from its shape and strides.

    ``position`` is the axis that counts positions; without one it is the symbolic axis, or a unit axis.
    """
    outer = list(zip(shape[:-1], strides[:-1], strict=True))
    if position is None:
        symbolic = [i for i, (dim, _) in enumerate(outer) if isinstance(dim, Size)]
        units = [i for i, (dim, _) in enumerate(outer) if dim == 1]
        position = (symbolic or units or [len(outer) - 1])[0] if outer else None
    rows, row_stride = outer.pop(position) if position is not None else (1, 0)
    wide = [(dim, stride) for dim, stride in outer if dim != 1]
    if len(wide) > 1:
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"rows spread over {len(wide) + 1} axes of {shape}")
    heads, head_stride = wide[0] if wide else (1, 0)
    return rows, heads, row_stride if rows != 1 else 0, head_stride


def _lower_rows(region: Region) -> Anchor:
    graph = region.graph
    compute = [node for node in graph.nodes if not is_view(node)]
    width = _fixed(_array(graph, compute[0].inputs[0]).shape[-1], "the width")
    jobs: list[RowJob] = []
    rows: Dim | None = None
    for result in graph.outputs:
        value = base_of(graph, result)
        shape = _array(graph, value).shape
        nodes = [n for n in compute if _feeds(graph, n, value)]
        rotates = any(isinstance(n.op, ops.Rope) for n in nodes)
        position = len(shape) - 2 if rotates else None
        within = layout_within(graph, value, result)
        if within is None:
            raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"%{result} cannot be written where it is read")
        job_rows, heads, *strides = _row_axes(shape, within.strides, position)
        if rows not in (None, job_rows):
            raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"{rows} and {job_rows} positions in one kernel")
        rows = job_rows

        def load(base: str, name: str, target: Shape = shape, at: int | None = position) -> Instr:
            layout = layout_of(graph, name)
            if layout is None:
                raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"%{name} would have to be copied")
            if layout.shape == (width,):
                return Load(base, "column")
            if layout.shape == ():
                return Load(base, "scalar")
            target = (*target[:-1], width)
            aligned = layout.shape == target or sorted(map(str, layout.shape)) == sorted(map(str, target))
            if not aligned or layout.strides[-1] != 1:
                raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"an operand of shape {layout.shape}")
            # Rows that are permuted on the way (normalised before heads move) keep their position axis.
            where = at if layout.shape == target else _moved(layout.shape, target, at)
            _, _, row_stride, head_stride = _row_axes(layout.shape, layout.strides, where)
            return Load(base, "row", (row_stride, head_stride))

        program = _Writer(graph, width, load).write(nodes, value)
        written = _fixed(shape[-1], "the width")
        if written != (width if program.is_row(program.result) else 1):
            raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"rows of {written} from rows of {width}")
        jobs.append(RowJob(heads, written, program, result, (strides[0], strides[1])))
    return RowMap(rows if rows is not None else 1, width, tuple(jobs))


def _moved(shape: Shape, target: Shape, position: int | None) -> int | None:
    """The axis of ``shape`` that is axis ``position`` of ``target`` after heads and rows swap places."""
    if position is None or len(shape) != 4:
        return None
    swapped = {1: 2, 2: 1}.get(position, position)
    return swapped if shape[swapped] == target[position] else position


def _rows_first(shape: Shape, strides: Shape, stored: Shape) -> bool:
    """Whether ``[B, H, L, D]``, seen with ``strides``, is stored as ``[B, L, H * D]``; refuses other orders.

    A value stored with four axes has heads before rows; with one row the two orders are the same memory,
    and the stored shape decides.
    """
    _, heads, rows, width = shape
    rows_first = stored != shape
    wanted = (width, product((heads, width))) if rows_first else (product((rows, width)), width)
    fits_heads = heads == 1 or strides[1] == wanted[0]
    fits_rows = rows == 1 or strides[2] == wanted[1]
    fits_stored = not rows_first or (len(stored) >= 3 and stored[1] == rows)
    if not (fits_heads and fits_rows and fits_stored and strides[3] == 1):
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"rows of {shape} with strides {strides} in {stored}")
    return rows_first


def _lower_attention(region: Region) -> Anchor:
    graph = region.graph
    node = next(n for n in graph.nodes if isinstance(n.op, ops.Attention))
    op = node.op
    assert isinstance(op, ops.Attention)
    if len(node.inputs) > 3:
        raise _Unsupported(Reason.UNSUPPORTED_OP, "attention under an array mask")
    q, k, v = node.inputs
    if is_view(graph.producer.get(k)) or is_view(graph.producer.get(v)):
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, "keys or values seen through a view")
    q_layout, out = layout_of(graph, q), graph.outputs[0]
    out_layout = layout_within(graph, node.output, out)
    if q_layout is None or out_layout is None:
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, "queries or result would have to be copied")
    if q_layout.shape[0] != 1:
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"a batch of {q_layout.shape[0]}")
    keys, values = _array(graph, k).shape, _array(graph, v).shape
    width, value_width = _fixed(keys[3], "the key width"), _fixed(values[3], "the value width")
    if width % 8 or value_width % 8 or max(width, value_width) > 256:
        raise _Unsupported(Reason.UNSUPPORTED_LAYOUT, f"heads of {width} and {value_width} elements")
    return AttentionAnchor(
        base_of(graph, q), k, v, out, q_layout.shape[2], _fixed(q_layout.shape[1], "the number of heads"),
        _fixed(keys[1], "the number of key heads"), width, value_width, op.scale, op.causal,
        _rows_first(q_layout.shape, q_layout.strides, _array(graph, base_of(graph, q)).shape),
        _rows_first(out_layout.shape, out_layout.strides, _array(graph, out).shape),
    )  # fmt: skip


def _is_scalar_input(graph: Graph, value: str) -> bool:
    type_ = _array(graph, value)
    return type_.shape == () and not type_.dtype.is_float


def lower(region: Region, *, many_rows: bool = False, schedule: Schedule | None = None) -> Kernel | Failure:
    """The kernel of a region.

    Args:
        region: what to compute.
        many_rows: for matrix products, a :class:`MatMul` instead of a :class:`MatVec`.
        schedule: knobs; the backend's defaults when ``None``.

    Returns:
        The kernel, or why there is none.
    """
    graph = region.graph
    try:
        if region.kind is RegionKind.GEMM:
            anchor = _lower_gemm(region, MatMul if many_rows else MatVec)
        elif region.kind is RegionKind.ROWS:
            anchor = _lower_rows(region)
        elif region.kind is RegionKind.ATTENTION:
            anchor = _lower_attention(region)
        else:
            names = ", ".join(node.op.name for node in graph.nodes if not is_view(node))
            raise _Unsupported(Reason.UNSUPPORTED_OP, f"{names} stays with MLX")
    except _Unsupported as error:
        return Failure(Stage.LOWER, error.reason, str(error), region.name)
    scalars = tuple(v for v, _ in graph.inputs if _is_scalar_input(graph, v))
    cached = {anchor.k, anchor.v} if isinstance(anchor, AttentionAnchor) else set()
    inputs = [Operand(v, t, v in cached) for v, t in graph.inputs if v not in scalars]
    inputs += [Operand(p.value, p.type) for p in graph.params]
    outputs = tuple(Operand(v, graph.types[v]) for v in graph.outputs)
    return Kernel(region.name, region.signature, tuple(inputs), outputs, scalars, anchor, schedule or Schedule())
