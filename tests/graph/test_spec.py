"""What a well-formed graph is: everything else is refused."""

from __future__ import annotations

import pytest

from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Graph
from mlx_autoperfect.graph.spec import INFER, SpecError, check_graph
from mlx_autoperfect.graph.text import parse_graph
from mlx_autoperfect.graph.types import Size, evaluate, parse_dim, parse_type, product
from tests.graph.samples import MISFITS, SAMPLES, Sample, other_dtype, other_shape

_EFFECTS = {ops.CacheUpdate, ops.CallBlock}
CHECKED = tuple(sample for sample in SAMPLES if type(sample.op) in INFER)


def test_every_op_without_an_effect_is_checked_or_indexes() -> None:
    unchecked = {type(sample.op) for sample in SAMPLES} - set(INFER) - _EFFECTS
    assert unchecked == {ops.Slice, ops.Concat, ops.Embedding}


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_a_well_formed_graph_is_returned_unchanged(sample: Sample) -> None:
    graph = sample.graph()
    assert check_graph(graph) is graph


@pytest.mark.parametrize("wrong", [other_dtype, other_shape], ids=["dtype", "shape"])
@pytest.mark.parametrize("sample", CHECKED, ids=str)
def test_a_wrong_declared_type_is_refused(sample: Sample, wrong: object) -> None:
    declared = wrong(sample.output)  # type: ignore[operator]
    assert declared != sample.output
    with pytest.raises(SpecError, match=f"{sample.op.name} yields"):
        check_graph(sample.graph(declared))


@pytest.mark.parametrize(("op", "inputs", "word"), MISFITS, ids=lambda value: str(value)[:40])
def test_inputs_that_do_not_fit_are_refused(op: ops.Op, inputs: tuple[str, ...], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        check_graph(Sample(op, inputs, "f16[1]").graph())


def _graph(*lines: str) -> Graph:
    return parse_graph("\n".join(["graph g", "in %x: f16[4]", *lines]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("%y: f16[4] = silu(%z)", "out %y"), "%z is used by silu before it is defined"),
        (("%y: f16[4] = silu(%z)", "%z: f16[4] = silu(%x)", "out %y"), "%z is used by silu before it is defined"),
        (("%y: f16[4] = silu(%y)", "out %y"), "%y is used by silu before it is defined"),
        (("%x: f16[4] = silu(%x)", "out %x"), "%x is defined twice"),
        (("%y: f16[4] = silu(%x)", "%y: f16[4] = silu(%x)", "out %y"), "%y is defined twice"),
        (("par %x: f16[4] @ weight", "out %x"), "%x is defined twice"),
        (("const %c: f16[] = 1.0", "par %c: f16[4] @ weight", "out %x"), "%c is defined twice"),
        (("out %y",), "output %y is never defined"),
    ],
)
def test_values_are_defined_once_and_before_use(lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_graph(_graph(*lines))


@pytest.mark.parametrize("text", ["f16[]", "i32[4]", "bool[2,L]", "f32[4*L,T]", "w:bf16[3,4]", "w:q8g128.f32[3,128]"])
def test_types_round_trip(text: str) -> None:
    assert str(parse_type(text)) == text


@pytest.mark.parametrize("text", ["f16", "f16[", "f16[1;2]", "w:q4[3,4]", "w:q4g32[3,4]", "w:f16[L,4]", "x16[2]"])
def test_bad_types_are_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse_type(text)


def test_sizes() -> None:
    assert parse_dim("4*L") == Size("L", 4)
    assert evaluate(Size("L", 4), {"L": 7}) == 28
    assert product((3, Size("L"), 4)) == Size("L", 12)
    with pytest.raises(ValueError, match="cannot be multiplied"):
        product((Size("L"), Size("T")))
