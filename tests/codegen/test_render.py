"""Rendering for the CPU: deterministic, shared by kernels that differ in sizes, refused where there is no template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlx_autoperfect.codegen.emit import RowEnvironment, emit_elements, emit_row
from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.dtypes import Affine, DType
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.fusion.region import RegionKind
from mlx_autoperfect.graph.types import ArrayType, WeightType
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect.kernel.program import Load, Program, ProgramBuilder, RowReduce
from mlx_autoperfect_cpu.render import SPELLING, render
from tests.kernel.test_machine import SPECS
from tests.models import Spec, regions_of

DEFAULT = Spec()


def _kernel(name: str, spec: Spec = DEFAULT, many_rows: bool = False) -> Kernel:
    region = next(r for label, r in regions_of(spec) if r.name == name and label.startswith("prefill"))
    kernel = lower(region, many_rows=many_rows)
    assert isinstance(kernel, Kernel)
    return kernel


def _source(kernel: Kernel) -> Source:
    source = render(kernel)
    assert isinstance(source, Source)
    return source


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_kernel_of_a_model_has_a_source(spec: Spec) -> None:
    for label, region in regions_of(spec):
        for many_rows in {False, region.kind is RegionKind.GEMM}:
            kernel = lower(region, many_rows=many_rows)
            if isinstance(kernel, Kernel):
                assert isinstance(render(kernel), Source), label


def test_rendering_is_a_function_of_the_kernel() -> None:
    for name in ("rms_qkv", "rope", "attention"):
        assert _source(_kernel(name)).content_hash == _source(_kernel(name)).content_hash


def test_kernels_that_differ_in_sizes_share_a_source() -> None:
    small, large = _kernel("o_residual"), _kernel("o_residual", Spec(config=(("hidden_size", 256),)))
    assert small.content_hash != large.content_hash
    assert _source(small).text == _source(large).text


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("rms_qkv", Spec(config=(("rms_norm_eps", 1e-6),))),
        ("rms_qkv", Spec(dtype="bfloat16")),
        ("rms_qkv", Spec(quant=(8, 32))),
        ("rms_qkv", Spec(quant=(4, 64))),
        ("rope", Spec(config=(("rope_theta", 5e5),))),
        ("rope", Spec(config=(("rope_traditional", True),))),
        ("rope", Spec(rope_dims=16)),
        ("attention", Spec(config=(("head_dim", 64),))),
    ],
)
def test_every_constant_is_in_the_source(name: str, other: Spec) -> None:
    assert _source(_kernel(name)).text != _source(_kernel(name, other)).text


def test_the_anchor_is_in_the_source() -> None:
    few, many = _source(_kernel("rms_qkv")), _source(_kernel("rms_qkv", many_rows=True))
    assert "matvec.h" in few.text and "matmul.h" in many.text


def _with_type(kernel: Kernel, at: int, type_: Any) -> Kernel:
    operands = list(kernel.inputs)
    operands[at] = replace(operands[at], type=type_)
    return replace(kernel, inputs=tuple(operands))


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        (WeightType(Affine(3, 32, DType.F16), (128, 128)), "3 bits"),
        (WeightType(Affine(4, 16, DType.F16), (128, 128)), "groups of 16"),
        (WeightType(Affine(4, 32, DType.I32), (128, 128)), "i32"),
        (ArrayType(DType.I64, (1, 1, 128)), "i64"),
    ],
)
def test_a_format_without_a_template_is_refused(type_: Any, words: str) -> None:
    kernel = _with_type(_kernel("o_residual"), 2, type_)
    failure = render(kernel)
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.reason, failure.where) == (
        Stage.RENDER, Reason.UNSUPPORTED_FORMAT, "o_residual",
    )  # fmt: skip
    assert words in failure.detail


ENV = RowEnvironment(
    lambda load: f"load({load.operand})", "spill({0});", "reload()", lambda rotate: "rotate();", "put({0});"
)


def test_a_reduction_is_a_loop_of_its_own() -> None:
    b = ProgramBuilder()
    x = b.add(Load("x", "row", (8, 0)))
    total = b.add(RowReduce("sum", b.apply("mul", x, x)))
    lines = emit_row(b.build(b.apply("mul", x, b.apply("rsqrt", total))), SPELLING, ENV, "K")
    assert sum(line.startswith("for_row(K") for line in lines) == 2
    assert lines.index("});") < next(i for i, line in enumerate(lines) if "vrsqrt" in line)


def test_a_rotation_goes_through_scratch() -> None:
    source = _source(_kernel("rms_rope", Spec("qwen3"))).text
    assert source.count("rope(tmp") == 2
    assert source.index("store(tmp") < source.index("rope(tmp") < source.index("load(tmp")


def test_programs_that_make_no_sense_are_refused() -> None:
    b = ProgramBuilder()
    total = b.add(RowReduce("sum", b.add(Load("x", "row", (8, 0)))))
    with pytest.raises(ValueError, match="must yield a row"):
        emit_row(b.build(total), SPELLING, ENV, "K")
    with pytest.raises(ValueError, match="no row operations"):
        emit_elements(b.build(total), SPELLING, lambda load: "x")


def test_equal_instructions_are_written_once_and_dead_ones_not_at_all() -> None:
    b = ProgramBuilder()
    x = b.add(Load("x", "row", (8, 0)))
    b.apply("exp", x)
    result = b.apply("add", b.apply("neg", x), b.apply("neg", x))
    program = b.build(result)
    assert [name for name, _ in program.body] == ["x0", "x2", "x3"]
    assert program == Program(program.body, "x3")
