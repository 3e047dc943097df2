"""The text form of graphs: printed and parsed back without loss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Constant, Graph, Node, Param
from mlx_autoperfect.graph.ops import OPS
from mlx_autoperfect.graph.text import parse_graph, print_graph
from mlx_autoperfect.graph.types import parse_type
from tests.graph.samples import SAMPLES, Sample
from tests.models import FAMILIES, LLAMA3_SCALING, REGIMES, Spec, build, canonical, capture

CAPTURED = (
    *(Spec(family) for family in FAMILIES),
    Spec("llama", "bfloat16", None, (("rope_scaling", LLAMA3_SCALING), ("tie_word_embeddings", False)), label="llama3"),
)


def test_every_op_has_a_sample() -> None:
    assert {type(sample.op) for sample in SAMPLES} | {ops.CacheUpdate} == set(OPS.values())


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("comments", [False, True])
def test_samples_round_trip(sample: Sample, comments: bool) -> None:
    graph = sample.graph()
    assert parse_graph(print_graph(graph, comments=comments)) == graph


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
@pytest.mark.parametrize("spec", CAPTURED, ids=str)
def test_captured_graphs_round_trip(spec: Spec, regime: object) -> None:
    program = capture(build(spec), regime)  # type: ignore[arg-type]
    for graph in (program.root, *program.blocks, *program.map(canonical).blocks):
        parsed = parse_graph(print_graph(graph))
        assert parsed == graph
        assert parsed.content_hash == graph.content_hash
        assert print_graph(parsed, comments=False) == print_graph(graph, comments=False)


def test_constants_and_parameters_keep_every_bit() -> None:
    table = tuple(float(2.0**-i) / 3 for i in range(6))
    constants = (
        Constant("c0", parse_type("f32[]"), (1 / 3,), ()),
        Constant("c1", parse_type("f32[2,3]"), table, (2, 3)),
        Constant("c2", parse_type("f32[]"), (float("-inf"),), ()),
        Constant("c3", parse_type("i32[]"), (-7.0,), ()),
    )
    params = (
        Param("p0", parse_type("w:q4g32.f16[96,64]"), "mlp.up_proj", ("weight", "scales", "biases")),
        Param("p1", parse_type("f16[96]"), "mlp.up_proj.bias"),
    )
    node = Node(ops.Linear(), ("x", "p0", "p1"), ("y",), (parse_type("f16[2,96]"),))
    graph = Graph("g", (("x", parse_type("f16[2,64]")),), params, constants, (node,), ("y", "x"))
    assert parse_graph(print_graph(graph)) == graph


def test_effects_with_two_results_round_trip() -> None:
    kv = parse_type("f16[1,2,1,64]")
    fetched = parse_type("f16[1,2,T,64]")
    node = Node(ops.CacheUpdate(), ("k", "v"), ("a", "b"), (fetched, fetched))
    graph = Graph("g", (("k", kv), ("v", kv)), (), (), (node,), ("a", "b"))
    assert parse_graph(print_graph(graph)) == graph


def test_comments_are_not_meaning() -> None:
    graph = SAMPLES[0].graph()
    renamed = replace(graph, nodes=(replace(graph.nodes[0], origin="elsewhere"),))
    assert renamed == graph
    assert renamed.content_hash == graph.content_hash


_GOOD = ["graph g", "  in    %x: f16[1,L,64]", "  %y: f16[1,L,64] = silu(%x)", "  out %y"]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (2, "  in    %x f16[1,L,64]"),
        (2, "  in    %x: f17[1,L,64]"),
        (2, "  in    %x: f16[1,l,64]"),
        (2, "  par   %x: w:q4h32.f16[64,64] @ q_proj (weight scales biases)"),
        (2, "  par   %x: f16[64]"),
        (2, "  const %x: f32[] = one"),
        (3, "  %y: f16[1,L,64] = sillu(%x)"),
        (3, "  %y: f16[1,L,64] = rms_norm(%x) {epsilon=1}"),
        (3, "  %y: f16[1,L,64] = rms_norm(%x) {eps=small}"),
        (3, "  %y: f16[1,L,64] = gelu(%x) {tanh=maybe}"),
        (3, "  %y: f16[1,L,64] = rms_norm(%x)"),
        (3, "  %y: f16[1,L,64] silu(%x)"),
        (3, "  what is this"),
    ],
)
def test_bad_text_names_the_line(number: int, line: str) -> None:
    lines = list(_GOOD)
    lines[number - 1] = line
    with pytest.raises(ValueError, match=rf"^line {number} of the graph's text") as caught:
        parse_graph("\n".join(lines))
    assert line.strip() in str(caught.value)
    assert parse_graph("\n".join(_GOOD)).outputs == ("y",)
