"""What cannot be lowered is a value with a reason; what can, has the ABI that its region says."""

from __future__ import annotations

import pytest

from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.fusion.partition import partition
from mlx_autoperfect.fusion.region import Region
from mlx_autoperfect.graph.spec import check_graph
from mlx_autoperfect.graph.text import parse_graph
from mlx_autoperfect.graph.types import Size
from mlx_autoperfect.kernel.abi import FlatArray, first_index, flat_inputs
from mlx_autoperfect.kernel.ir import AttentionAnchor, Gemm, Kernel
from mlx_autoperfect.kernel.lower import lower
from tests.models import Spec, regions_of


def _regions(*lines: str) -> tuple[Region, ...]:
    return partition(check_graph(parse_graph("\n".join(["graph g", *lines])))).regions


_X = "in %x: f16[1,L,64]"
_T = "f16[1,L,64]"
_Q, _K = "in %q: f16[{b},4,L,{d}]", "in %k: f16[{b},2,T,{d}]"
_ATTENTION = "%y: f16[{b},4,L,{d}] = attention(%q, %k, %k{m}) {{scale=0.1, causal={c}}}"


def _attention(b: int = 1, d: int = 64, mask: bool = False) -> tuple[str, ...]:
    lines = [_Q, _K, *(["in %m: f16[L,T]"] if mask else []), _ATTENTION, "out %y"]
    values = {"b": b, "d": d, "m": ", %m" if mask else "", "c": "false" if mask else "true"}
    return tuple(line.format(**values) for line in lines)


# name -> (graph, reason, words of the message)
REFUSED: dict[str, tuple[tuple[str, ...], Reason, str]] = {
    "slice": (
        (_X, "%y: f16[1,L,32] = slice(%x) {start=(0 0 0), stop=(1 L 32), step=(1 1 1)}", "out %y"),
        Reason.UNSUPPORTED_OP, "slice stays with MLX",
    ),
    "function": ((_X, f"%y: {_T} = unary(%x) {{fn=sin}}", "out %y"), Reason.UNSUPPORTED_OP, "no kernel computes sin"),
    "power": (
        (_X, f"%y: {_T} = binary(%x, %x) {{fn=pow}}", "out %y"), Reason.UNSUPPORTED_OP, "no kernel computes pow",
    ),
    "one number per row": (
        (_X, "in %s: f16[1,L,1]", f"%y: {_T} = binary(%x, %s) {{fn=mul}}", "out %y"),
        Reason.UNSUPPORTED_LAYOUT, "operand of shape",
    ),
    "symbolic width": (("in %x: f16[4,L]", "%y: f16[4,L] = silu(%x)", "out %y"), Reason.UNSUPPORTED_LAYOUT, "width"),
    "attention under an array mask": (_attention(mask=True), Reason.UNSUPPORTED_OP, "array mask"),
    "attention of a batch": (_attention(b=2), Reason.UNSUPPORTED_LAYOUT, "batch of 2"),
    "heads of 260": (_attention(d=260), Reason.UNSUPPORTED_LAYOUT, "260"),
    "heads of 12": (_attention(d=12), Reason.UNSUPPORTED_LAYOUT, "12"),
    "keys through a view": (
        ("in %q: f16[1,4,L,64]", "in %k: f16[1,T,2,64]", "%v: f16[1,2,T,64] = transpose(%k) {perm=(0 2 1 3)}",
         "%y: f16[1,4,L,64] = attention(%q, %v, %v) {scale=0.1, causal=true}", "out %y"),
        Reason.UNSUPPORTED_LAYOUT, "through a view",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why(name: str) -> None:
    lines, reason, words = REFUSED[name]
    failures = [f for f in map(lower, _regions(*lines)) if isinstance(f, Failure)]
    assert [(f.stage, f.reason) for f in failures] == [(Stage.LOWER, reason)]
    assert words in failures[0].detail
    assert failures[0].where


DEFAULT = Spec()


def _kernel(name: str, regime: str = "prefill", spec: Spec = DEFAULT) -> Kernel:
    region = next(r for label, r in regions_of(spec) if r.name == name and label.startswith(regime))
    kernel = lower(region)
    assert isinstance(kernel, Kernel)
    assert (kernel.name, kernel.signature) == (region.name, region.signature)
    return kernel


def test_the_flat_abi_of_a_quantised_product() -> None:
    kernel = _kernel("down_residual")
    row, inner = Size("L"), 256
    assert flat_inputs(kernel) == (
        FlatArray("i0", 0, DType.F16, (1, row, inner)),
        FlatArray("i1", 0, DType.F16, (1, row, 128)),
        FlatArray("w0", 0, DType.U32, (128, inner // 8)),
        FlatArray("w0", 1, DType.F16, (128, inner // 32)),
        FlatArray("w0", 2, DType.F16, (128, inner // 32)),
    )
    assert first_index(kernel) == {"i0": 0, "i1": 1, "w0": 2, "t1": 0}


def test_the_cache_may_be_strided_and_nothing_else() -> None:
    kernel = _kernel("attention")
    assert isinstance(kernel.anchor, AttentionAnchor)
    assert {o.name for o in kernel.inputs if o.strided} == {kernel.anchor.k, kernel.anchor.v}
    others = [_kernel(name) for name in ("rms_qkv", "rope", "o_residual")]
    assert not any(o.strided for other in others for o in other.inputs)


def test_the_offset_is_a_scalar_of_the_kernel_that_rotates() -> None:
    kernel = _kernel("rope")
    assert len(kernel.scalars) == 1
    assert kernel.scalars[0] not in {o.name for o in kernel.inputs}
    assert _kernel("attention").scalars == ()


def test_attention_knows_its_heads() -> None:
    anchor = _kernel("attention").anchor
    assert isinstance(anchor, AttentionAnchor)
    assert (anchor.heads, anchor.groups, anchor.width, anchor.value_width, anchor.causal) == (4, 2, 32, 32, True)
    decode = _kernel("attention", "decode").anchor
    assert isinstance(decode, AttentionAnchor)
    assert (decode.causal, decode.rows) == (False, 1)


def test_one_job_per_result_and_no_bias_without_one() -> None:
    plain, biased = _kernel("rms_qkv").anchor, _kernel("rms_qkv", spec=Spec("qwen2")).anchor
    assert isinstance(plain, Gemm) and isinstance(biased, Gemm)
    assert [len(job.weights) for job in plain.jobs] == [1, 1, 1]
    assert [len(job.epilogue.body) for job in plain.jobs] == [1, 1, 1]
    assert [len(job.epilogue.body) for job in biased.jobs] == [3, 3, 3]
    gate_up = _kernel("rms_gate_up_swiglu").anchor
    assert isinstance(gate_up, Gemm)
    assert [len(job.weights) for job in gate_up.jobs] == [2]
