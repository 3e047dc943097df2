"""What a captured graph is called and made of: parameters by path, one graph for equal layers, symbolic sizes."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_autoperfect.capture.blocks import find_blocks, linear_leaves
from mlx_autoperfect.capture.leaf import capture_linear
from mlx_autoperfect.capture.model import fingerprint
from mlx_autoperfect.dtypes import Affine, Dense, DType
from mlx_autoperfect.graph.text import print_graph
from mlx_autoperfect.graph.types import ArrayType, Size, WeightType
from tests.models import FAMILIES, LLAMA3_SCALING, REGIMES, Spec, build, capture, parameters

_FORMATS = {
    "dense": (None, Dense(DType.F16)),
    "q4g32": ((4, 32), Affine(4, 32, DType.F16)),
    "q8g128": ((8, 128), Affine(8, 128, DType.F16)),
}


@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_layers_have_equal_graphs(family: str, regime: object) -> None:
    first, second = capture(build(Spec(family)), regime).blocks  # type: ignore[arg-type]
    assert first.name == "model.layers.0" and second.name == "model.layers.1"
    assert print_graph(replace(first, name="")) == print_graph(replace(second, name=""))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quant", [None, (4, 32)], ids=["dense", "q4"])
def test_every_parameter_is_bound_once_by_its_path(family: str, quant: tuple[int, int] | None) -> None:
    model = build(Spec(family, quant=quant, config=(("tie_word_embeddings", False),)))
    program = capture(model, REGIMES["decode"])
    bound: list[str] = []
    for prefix, graph in (("", program.root), *zip(program.paths, program.blocks, strict=True)):
        dotted = f"{prefix}." if prefix else ""
        for param in graph.params:
            paths = [f"{param.path}.{part}" for part in param.parts] if param.parts else [param.path]
            bound += [dotted + path for path in paths]
    assert sorted(bound) == sorted(parameters(model))


def test_a_tied_head_is_the_embedding() -> None:
    program = capture(build(Spec()), REGIMES["decode"])
    embedding, head = program.root.nodes[0], program.root.nodes[-1]
    assert (embedding.op.name, head.op.name) == ("embedding", "linear")
    assert embedding.inputs[1] == head.inputs[1]
    assert program.root.param_of[head.inputs[1]].path == "model.embed_tokens"


@pytest.mark.parametrize("name", _FORMATS)
def test_weights_carry_their_format(name: str) -> None:
    quant, format_ = _FORMATS[name]
    graph = capture(build(Spec(quant=quant)), REGIMES["decode"]).blocks[0]
    weights = {p.path: p.type for p in graph.params if isinstance(p.type, WeightType)}
    assert weights["mlp.up_proj"] == WeightType(format_, (256, 128))
    assert weights["mlp.down_proj"] == WeightType(format_, (128, 256))
    assert len(weights) == 7


def test_sizes_are_symbolic_where_they_may_differ() -> None:
    model = build(Spec())
    shapes = {
        name: [graph.types[node.output].shape for node in graph.nodes if node.op.name == "attention"]
        for name, graph in ((n, capture(model, r).blocks[0]) for n, r in REGIMES.items())
    }
    assert shapes == {"decode": [(1, 4, 1, 32)], "prefill": [(1, 4, Size("L"), 32)]}
    graph = capture(model, REGIMES["prefill"]).blocks[0]
    update = next(node for node in graph.nodes if node.op.name == "cache_update")
    assert [t.shape for t in update.types] == [(1, 2, Size("T"), 32)] * 2
    assert graph.inputs == (("h", ArrayType(DType.F16, (1, Size("L"), 128))), ("offset", ArrayType(DType.I32, ())))


def test_the_root_tells_how_it_calls_its_blocks() -> None:
    program = capture(build(Spec()), REGIMES["prefill"])
    assert [call.args for call in program.calls] == [("causal",)] * 2
    assert [[(key, value.index) for key, value in call.kwargs] for call in program.calls] == [
        [("cache", 0)],
        [("cache", 1)],
    ]
    assert capture(build(Spec()), REGIMES["decode"]).calls[0].args == (None,)


def test_fingerprints_tell_layers_apart() -> None:
    """Equal structure and tables: equal. Another constant, class, format or table: different."""

    def prints(spec: Spec) -> list[str]:
        return [fingerprint(block.module) for block in find_blocks(build(spec))]

    first, second = prints(Spec())
    assert first == second
    others = [
        Spec(config=(("rms_norm_eps", 1e-6),)),
        Spec(config=(("rope_theta", 5e5),)),
        Spec(config=(("rope_traditional", True),)),
        Spec(config=(("rope_scaling", LLAMA3_SCALING),)),
        Spec(config=(("rope_scaling", {**LLAMA3_SCALING, "factor": 32.0}),)),
        Spec(config=(("attention_bias", True),)),
        Spec(quant=(4, 64)),
        Spec(quant=(8, 32)),
        Spec(dtype="bfloat16"),
        Spec(quant=None),
        Spec("qwen3"),
    ]
    found = {first, *(prints(spec)[0] for spec in others)}
    assert len(found) == 1 + len(others)


def test_a_fingerprint_sees_tables_by_value() -> None:
    model = build(Spec(config=(("rope_scaling", LLAMA3_SCALING),)))
    blocks = find_blocks(model)
    before = fingerprint(blocks[1].module)
    assert before == fingerprint(blocks[0].module)
    rope = blocks[1].module.self_attn.rope
    rope._freqs = mx.where(mx.arange(rope._freqs.size) == 7, rope._freqs * 2, rope._freqs)
    assert fingerprint(blocks[1].module) != before


def test_a_fingerprint_does_not_see_weights_or_training() -> None:
    model = build(Spec())
    before = fingerprint(model.layers[0])
    other = build(Spec(), seed=1)
    other.train()
    assert fingerprint(other.layers[0]) == before


def test_linear_leaves_are_the_plain_ones() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Module()
    model.plain = nn.Linear(64, 32)
    model.special = Special(64, 32)
    model.affine = nn.QuantizedLinear(64, 32, group_size=32, bits=4)
    model.other = nn.QuantizedLinear(64, 32, group_size=32, bits=4, mode="mxfp4")
    assert {path for path, _ in linear_leaves(model)} == {"plain", "affine"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("quant", [None, (4, 32), (8, 128)], ids=str)
def test_the_graph_of_a_leaf_is_the_leaf(quant: tuple[int, int] | None, bias: bool) -> None:
    from mlx_autoperfect.graph.on_mlx import run_on_mlx
    from tests.models import same_bits

    module: nn.Module = nn.Linear(128, 48, bias=bias)
    if quant is not None:
        module = nn.QuantizedLinear.from_linear(module, *quant[::-1])
    graph = capture_linear(module)
    x = mx.random.normal((5, 128), key=mx.random.key(0))
    # The leaf's own weight matrix has no path of its own: it is the module.
    lookup = {f".{key}": value for key, value in module.parameters().items()} | dict(module.parameters())
    assert same_bits(run_on_mlx(graph, [x], lookup)[0], module(x))
