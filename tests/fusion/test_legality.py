"""Every reason for not fusing, each on a small graph; whatever is cut computes what the graph computes."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_autoperfect.errors import Reason
from mlx_autoperfect.fusion.partition import Fuel, Partition, partition
from mlx_autoperfect.fusion.region import RegionKind
from mlx_autoperfect.graph.on_float64 import run_on_float64
from mlx_autoperfect.graph.spec import check_graph
from mlx_autoperfect.graph.text import parse_graph
from tests.fusion.execution import execute, inputs_of

X = "in %x: f16[1,L,64]"
W = "par %w: w:f16[64,64] @ w (weight)"
V = "par %v: w:f16[64,64] @ v (weight)"
Q4 = "par %q: w:q4g32.f16[64,64] @ q (weight scales biases)"
Q8 = "par %r: w:q8g32.f16[64,64] @ r (weight scales biases)"
N = "par %n: f16[64] @ n"
OFFSET = "in %offset: i32[]"
T = "f16[1,L,64]"
NORM = f"%a: {T} = rms_norm(%x, %n) {{eps=1e-05}}"
ROPE = "{dims=64, base=10000.0, scale=1.0, traditional=false}"
H = "f16[1,1,L,64]"


def cut(*lines: str, fuel: int | None = None) -> Partition:
    return partition(check_graph(parse_graph("\n".join(["graph g", *lines]))), Fuel(fuel))


# name -> (graph, groups of values that share a kernel, reason of a refusal that must be reported, or None)
CASES: dict[str, tuple[tuple[str, ...], list[str], Reason | None]] = {
    "norm into product": ((X, W, N, NORM, f"%b: {T} = linear(%a, %w)", "out %b"), ["a b"], None),
    "norm that is an output": (
        (X, W, N, NORM, f"%b: {T} = linear(%a, %w)", "out %a, %b"), ["a", "b"], Reason.MULTI_CONSUMER,
    ),
    "norm that something else reads": (
        (X, W, N, NORM, f"%b: {T} = linear(%a, %w)", f"%c: {T} = binary(%b, %a) {{fn=add}}", "out %c"),
        ["a", "b c"], Reason.ANCHOR_CONFLICT,
    ),
    "product into activation": (
        (X, W, f"%a: {T} = linear(%x, %w)", f"%b: {T} = silu(%a)", "out %b"), ["a b"], None,
    ),
    "product into norm": (
        (X, W, N, f"%b: {T} = linear(%x, %w)", f"%c: {T} = rms_norm(%b, %n) {{eps=1e-05}}", "out %c"),
        ["b", "c"], Reason.REDUCTION_BOUNDARY,
    ),
    "product into product": (
        (X, W, V, f"%a: {T} = linear(%x, %w)", f"%b: {T} = linear(%a, %v)", "out %b"),
        ["a", "b"], Reason.REDUCTION_BOUNDARY,
    ),
    "product into attention's scale": (
        (X, W, "in %s: f16[1,L,1]", f"%a: {T} = linear(%x, %w)", f"%b: {T} = binary(%a, %s) {{fn=mul}}", "out %b"),
        ["a", "b"], Reason.SHAPE_MISMATCH,
    ),
    "siblings": (
        (X, W, V, N, NORM, f"%b: {T} = linear(%a, %w)", f"%c: {T} = linear(%a, %v)", "out %b, %c"), ["a b c"], None,
    ),
    "siblings of two formats": (
        (X, Q4, Q8, f"%b: {T} = linear(%x, %q)", f"%c: {T} = linear(%x, %r)", "out %b, %c"),
        ["b", "c"], Reason.FORMAT_MISMATCH,
    ),
    "siblings, one biased by the other": (
        ("in %x: f16[1,64]", W, V, "%b: f16[1,64] = linear(%x, %w)", "%d: f16[64] = reshape(%b) {shape=(64)}",
         "%c: f16[1,64] = linear(%x, %v, %d)", "out %c"),
        ["b", "c"], Reason.REDUCTION_BOUNDARY,
    ),
    "two elementwise": ((X, f"%a: {T} = silu(%x)", f"%b: {T} = unary(%a) {{fn=exp}}", "out %b"), ["a b"], None),
    "rows of two widths": (
        (X, f"%a: {T} = silu(%x)", "%b: f16[1,L,2,32] = reshape(%a) {shape=(1 L 2 32)}",
         "%c: f16[1,L,2,32] = rms_norm(%b) {eps=1e-05}", "out %c"),
        ["a", "c"], Reason.SHAPE_MISMATCH,
    ),
    "columns read as rows": (
        ("in %x: f16[64,64]", "%a: f16[64,64] = silu(%x)", "%b: f16[64,64] = transpose(%a) {perm=(1 0)}",
         "%c: f16[64,64] = softmax(%b) {precise=true}", "out %c"),
        ["a", "c"], Reason.SHAPE_MISMATCH,
    ),
    "product of moved axes": (
        ("in %x: f16[64,64]", W, "%a: f16[64,64] = silu(%x)", "%b: f16[64,64] = transpose(%a) {perm=(1 0)}",
         "%c: f16[64,64] = linear(%b, %w)", "out %c"),
        ["a", "c"], Reason.SHAPE_MISMATCH,
    ),
    "rotation into product": (
        (f"in %x: {H}", OFFSET, W, f"%a: {H} = rope(%x, %offset) {ROPE}", f"%b: {H} = linear(%a, %w)", "out %b"),
        ["a", "b"], Reason.ANCHOR_CONFLICT,
    ),
    "attention into product": (
        (f"in %x: {H}", "in %k: f16[1,1,T,64]", W, f"%a: {H} = attention(%x, %k, %k) {{scale=0.1, causal=true}}",
         f"%b: {H} = linear(%a, %w)", "out %b"),
        ["a", "b"], Reason.ANCHOR_CONFLICT,
    ),
    "two rotations": (
        (f"in %x: {H}", f"in %y: {H}", OFFSET, f"%a: {H} = rope(%x, %offset) {ROPE}",
         f"%b: {H} = rope(%y, %offset) {ROPE}", "out %a, %b"),
        ["a b"], None,
    ),
    "a rotation that needs another": (
        (f"in %x: {H}", OFFSET, W, f"%a: {H} = rope(%x, %offset) {ROPE}", f"%b: {H} = linear(%a, %w)",
         f"%c: {H} = rope(%b, %offset) {ROPE}", "out %c"),
        ["a", "b", "c"], Reason.WOULD_CYCLE,
    ),
    "rotations of two widths": (
        (f"in %x: {H}", "in %y: f16[1,1,L,128]", OFFSET, f"%a: {H} = rope(%x, %offset) {ROPE}",
         f"%b: f16[1,1,L,128] = rope(%y, %offset) {ROPE}", "out %a, %b"),
        ["a", "b"], Reason.SHAPE_MISMATCH,
    ),
    "no kernel for a reduction": (
        (X, W, "%a: f16[1,1,64] = reduce(%x) {fn=sum, axes=(1), keepdims=true}", "%b: f16[1,1,64] = linear(%a, %w)",
         "out %b"),
        ["a", "b"], Reason.OPAQUE,
    ),
    "a row too long to hold": (
        ("in %x: f16[1,200000]", "par %w: w:f16[8,200000] @ w (weight)", "%a: f16[1,200000] = silu(%x)",
         "%b: f16[1,8] = linear(%a, %w)", "out %b"),
        ["a", "b"], Reason.FOOTPRINT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_fused_and_why_not(name: str) -> None:
    lines, groups, reason = CASES[name]
    parts = cut(*lines)
    assert sorted(" ".join(sorted(r.nodes)) for r in parts.regions) == sorted(groups)
    codes = {failure.reason for failure in parts.refused}
    assert reason in codes if reason is not None else not codes
    assert all(f.stage == "partition" and f.detail and "+" in f.where for f in parts.refused)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_the_cut_graph_computes_the_same(name: str, rows: int) -> None:
    parts = cut(*CASES[name][0])
    symbols = {"L": rows, "T": rows + 3}
    inputs, lookup = inputs_of(parts.graph, symbols)
    whole = run_on_float64(parts.graph, inputs, lookup)
    for got, want in zip(execute(parts, inputs, lookup), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_the_reasons_that_partition_can_give_are_all_tried() -> None:
    tried = {reason for *_, reason in CASES.values()} - {None}
    assert tried == {
        Reason.MULTI_CONSUMER, Reason.REDUCTION_BOUNDARY, Reason.SHAPE_MISMATCH, Reason.FORMAT_MISMATCH,
        Reason.ANCHOR_CONFLICT, Reason.WOULD_CYCLE, Reason.OPAQUE, Reason.FOOTPRINT,
    }  # fmt: skip


def test_too_many_operands_are_refused() -> None:
    weights = [f"par %w{i}: w:q4g32.f16[64,64] @ w{i} (weight scales biases)" for i in range(20)]
    products = [f"%y{i}: {T} = linear(%x, %w{i})" for i in range(20)]
    parts = cut(X, *weights, *products, "out " + ", ".join(f"%y{i}" for i in range(20)))
    assert Reason.FOOTPRINT in {f.reason for f in parts.refused}
    assert len(parts.regions) > 1
    assert all(sum(len(p.parts) for p in r.params) <= 40 for r in parts.regions)


def test_no_fuel_fuses_nothing() -> None:
    parts = cut(*CASES["siblings"][0], fuel=0)
    assert len(parts.regions) == 3 and not parts.fusions
    assert Reason.OUT_OF_FUEL in {f.reason for f in parts.refused}


def test_an_effect_parts_what_is_before_from_what_is_after() -> None:
    parts = cut(
        X, f"%a: {T} = silu(%x)", f"%b: {T} = call_block(%a) {{index=0}}", f"%c: {T} = unary(%b) {{fn=exp}}", "out %c"
    )
    assert [(r.nodes, r.inputs) for r in parts.regions] == [(("a",), ("x",)), (("c",), ("b",))]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"%y: {T} = silu(%x)", RegionKind.ROWS),
        (f"%y: {T} = softmax(%x) {{precise=true}}", RegionKind.ROWS),
        (f"%y: {T} = linear(%x, %w)", RegionKind.GEMM),
        ("%y: f16[1,L,32] = slice(%x) {start=(0 0 0), stop=(1 L 32), step=(1 1 1)}", RegionKind.STOCK),
        (f"%y: {T} = concat(%x) {{axis=1}}", RegionKind.STOCK),
        ("%y: bool[1,L,64] = binary(%x, %x) {fn=ge}", RegionKind.STOCK),
    ],
)
def test_kinds(line: str, kind: RegionKind) -> None:
    (region,) = cut(X, W, line, "out %y").regions
    assert region.kind is kind


def test_a_saving_counts_bytes_and_launches() -> None:
    (fusion,) = cut(
        "in %x: f16[1,64]", "%a: f16[1,64] = silu(%x)", "%b: f16[1,64] = unary(%a) {fn=exp}", "out %b"
    ).fusions
    assert (fusion.first, fusion.second) == ("%a", "%b")
    assert (fusion.saving.launches, fusion.saving.traffic) == (1, 2 * 2 * 64)
