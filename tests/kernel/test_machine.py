"""KernelIR means what the region means: the reference machine against the float64 oracle, and it sees wrong IR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlx_autoperfect.errors import Failure
from mlx_autoperfect.fusion.partition import partition
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.graph.spec import check_graph
from mlx_autoperfect.graph.text import parse_graph
from mlx_autoperfect.kernel.ir import AttentionAnchor, Gemm, Kernel, MatMul, MatVec, RowMap
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect.kernel.machine import reference
from mlx_autoperfect.kernel.program import Apply, Literal, Load, Program, Rotate, RowReduce
from tests.fusion.execution import by_machine, by_oracle, inputs_of
from tests.fusion.test_legality import CASES, cut
from tests.models import LLAMA3_SCALING, Spec, regions_of

UNTIED = ("tie_word_embeddings", False)
SPECS = (
    Spec("llama", "float16", (4, 32)),
    Spec("llama", "bfloat16", (8, 128), (("attention_bias", True), ("mlp_bias", True), UNTIED), label="biased"),
    Spec("llama", "float32", None, (("rope_scaling", LLAMA3_SCALING),), label="llama3"),
    Spec("llama", "float32", None, (("rope_traditional", True),), label="traditional"),
    Spec("llama", "float32", None, (("num_key_value_heads", 1),), rope_dims=16, label="mqa-partial"),
    Spec("qwen2", "float16", (4, 64)),
    Spec("qwen3", "float16", (8, 32)),
    Spec("qwen3", "bfloat16", None, (("num_key_value_heads", 4), UNTIED), label="mha"),
)


def _symbols(region: Region, rows: int, keys: int) -> dict[str, int]:
    return {"L": rows, "T": keys + rows}


def _check(region: Region, many_rows: bool, rows: int, keys: int) -> None:
    inputs, lookup = inputs_of(region.graph, _symbols(region, rows, keys))
    results = by_machine(region, inputs, lookup, many_rows)
    for got, want in zip(results, by_oracle(region, inputs, lookup), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_kernel_of_a_model_computes_its_region(spec: Spec) -> None:
    count = 0
    for label, region in regions_of(spec):
        if region.kind is RegionKind.STOCK:
            continue
        for many_rows in {False, region.kind is RegionKind.GEMM}:
            assert isinstance(lower(region, many_rows=many_rows), Kernel), label
            # Lengths that equal no other size of the model, and the shortest.
            for rows, keys in ((1, 0), (5, 9)):
                _check(region, many_rows, rows, keys)
                count += 1
    assert count >= 2 * (7 + 7 + 5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_kernels_of_small_graphs_compute_their_regions(name: str, rows: int) -> None:
    for region in cut(*CASES[name][0]).regions:
        _check(region, False, rows, 2)


_ROW = "in %x: f32[1,L,40]"
_PROGRAMS = {
    "layer_norm": ["par %n: f32[40] @ n", "par %m: f32[40] @ m", "%y: {t} = layer_norm(%x, %n, %m) {{eps=0.1}}"],
    "softmax": ["%y: {t} = softmax(%x) {{precise=true}}"],
    "gelu tanh": ["%y: {t} = gelu(%x) {{tanh=true}}"],
    "gelu erf": ["%y: {t} = gelu(%x) {{tanh=false}}"],
    "geglu": ["in %z: {t}", "%y: {t} = geglu(%x, %z) {{tanh=true}}"],
    "square of a constant's sum": ["const %c: f32[] = 0.25", "%a: {t} = binary(%x, %c) {{fn=add}}",
                                   "%y: {t} = unary(%a) {{fn=square}}"],
    "chain": ["%a: {t} = unary(%x) {{fn=tanh}}", "%b: {t} = unary(%a) {{fn=neg}}", "%c: {t} = unary(%b) {{fn=exp}}",
              "%d: {t} = binary(%c, %a) {{fn=max}}", "%y: {t} = binary(%d, %x) {{fn=div}}"],
    "cast": ["%a: bf16[1,L,40] = cast(%x) {{dtype=bf16}}", "%y: bf16[1,L,40] = silu(%a)"],
}  # fmt: skip


@pytest.mark.parametrize("name", _PROGRAMS)
def test_row_programs(name: str) -> None:
    head = [line for line in _PROGRAMS[name] if not line.startswith("%")]
    body = [line for line in _PROGRAMS[name] if line.startswith("%")]
    text = "\n".join(["graph g", _ROW, *head, *body, "out %y"]).format(t="f32[1,L,40]")
    (region,) = partition(check_graph(parse_graph(text.replace("{{", "{").replace("}}", "}")))).regions
    assert isinstance(lower(region), Kernel)
    _check(region, False, 3, 0)


def test_what_a_kernel_does_not_write_is_not_a_number() -> None:
    (_, region), *_ = (item for item in regions_of(SPECS[0]) if item[1].name == "rope")
    kernel = lower(region)
    assert isinstance(kernel, Kernel) and isinstance(kernel.anchor, RowMap)
    broken = replace(kernel, anchor=replace(kernel.anchor, jobs=kernel.anchor.jobs[:1]))
    results = _run(region, broken)
    assert np.isfinite(results[0]).all()
    assert np.isnan(results[1]).all()


def _run(region: Region, kernel: Kernel, rows: int = 5, keys: int = 6) -> list[Any]:
    from mlx_autoperfect.graph.on_float64 import bind_param

    inputs, lookup = inputs_of(region.graph, _symbols(region, rows, keys))
    named = dict(zip((name for name, _ in region.graph.inputs), inputs, strict=True))
    scalars = {name: int(named.pop(name)) for name in kernel.scalars}
    arrays = {**named, **{p.value: bind_param(p, lookup) for p in region.graph.params}}
    return reference(kernel, arrays, scalars)


def _programs(program: Program) -> Iterator[tuple[str, Program]]:
    """Programs with one wrong instruction each."""
    for at, (name, instr) in enumerate(program.body):
        wrong: list[tuple[str, Any]] = []
        if isinstance(instr, Literal):
            wrong.append(("constant", replace(instr, value=instr.value * 1.5 + 0.5)))
        elif isinstance(instr, Rotate):
            wrong.append(("pairs", replace(instr, traditional=not instr.traditional)))
            wrong.append(("positions", replace(instr, scale=instr.scale * 2)))
            wrong.append(("features", replace(instr, dims=instr.dims // 2)))
        elif isinstance(instr, RowReduce):
            wrong.append(("reduction", replace(instr, fn="max")))
        elif isinstance(instr, Apply) and instr.fn in {"add", "mul"}:
            wrong.append(("function", replace(instr, fn={"add": "sub", "mul": "add"}[instr.fn])))
        elif isinstance(instr, Load) and instr.access == "row" and any(instr.strides):
            wrong.append(("stride", replace(instr, strides=(instr.strides[1], instr.strides[0]))))
        for what, changed in wrong:
            body = (*program.body[:at], (name, changed), *program.body[at + 1 :])
            yield f"{what} {name}", replace(program, body=body)


def _mutants(kernel: Kernel) -> Iterator[tuple[str, Kernel]]:
    anchor: Any = kernel.anchor
    if isinstance(anchor, AttentionAnchor):
        changes: list[tuple[str, Any]] = [
            ("scale", replace(anchor, scale=anchor.scale * 1.1)),
            ("mask", replace(anchor, causal=not anchor.causal)),
            ("keys for values", replace(anchor, k=anchor.v, v=anchor.k)),
            ("order of queries", replace(anchor, q_rows_first=not anchor.q_rows_first)),
            ("order of results", replace(anchor, out_rows_first=not anchor.out_rows_first)),
        ]
        yield from ((what, replace(kernel, anchor=changed)) for what, changed in changes)
        return
    if isinstance(anchor, Gemm):
        for what, program in _programs(anchor.prologue):
            yield f"prologue {what}", replace(kernel, anchor=replace(anchor, prologue=program))
    field = "epilogue" if isinstance(anchor, Gemm) else "program"
    for at, job in enumerate(anchor.jobs):
        changed = [(what, replace(job, **{field: p})) for what, p in _programs(getattr(job, field))]
        if isinstance(anchor, RowMap) and any(job.strides):
            changed.append(("strides", replace(job, strides=(job.strides[1], job.strides[0]))))
        if isinstance(anchor, Gemm) and len(job.weights) > 1:
            swap = {job.weights[0]: job.weights[1], job.weights[1]: job.weights[0]}
            body = tuple(
                (n, replace(i, operand=swap.get(i.operand, i.operand)) if isinstance(i, Load) else i)
                for n, i in job.epilogue.body
            )
            changed.append(("weights", replace(job, epilogue=replace(job.epilogue, body=body))))
        for what, mutant in changed:
            jobs = (*anchor.jobs[:at], mutant, *anchor.jobs[at + 1 :])
            yield f"job {at} {what}", replace(kernel, anchor=replace(anchor, jobs=jobs))


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3], SPECS[6]], ids=str)
def test_the_machine_sees_a_wrong_kernel(spec: Spec) -> None:
    killed = 0
    for label, region in regions_of(spec):
        kernel = lower(region)
        if isinstance(kernel, Failure) or not label.startswith("prefill"):
            continue
        right = _run(region, kernel)
        for what, mutant in _mutants(kernel):
            try:
                results = _run(region, mutant)
            except (ValueError, IndexError):
                killed += 1
                continue
            same = all(np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(results, right, strict=True))
            assert not same, f"{label}: a wrong {what} gives the right numbers"
            killed += 1
    assert killed > 40


def test_both_matrix_anchors_mean_the_same() -> None:
    for _, region in regions_of(SPECS[0]):
        if region.kind is not RegionKind.GEMM:
            continue
        few, many = lower(region), lower(region, many_rows=True)
        assert isinstance(few, Kernel) and isinstance(many, Kernel)
        assert (type(few.anchor), type(many.anchor)) == (MatVec, MatMul)
        for a, b in zip(_run(region, few), _run(region, many), strict=True):
            np.testing.assert_array_equal(a, b)
