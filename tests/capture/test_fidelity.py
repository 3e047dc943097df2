"""The captured graph, run on MLX, is the model: bit for bit what eager MLX computes."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from mlx_autoperfect.graph import ops
from mlx_autoperfect.passes.driver import canonicalize
from tests.models import (
    LLAMA3_SCALING,
    REGIMES,
    Program,
    Spec,
    build,
    canonical,
    capture,
    run_eagerly,
    same_bits,
    stored,
    tokens_of,
)

UNTIED = ("tie_word_embeddings", False)
SPECS = (
    *(Spec("llama", dtype, None) for dtype in ("float32", "float16", "bfloat16")),
    *(
        Spec("llama", dtype, (bits, group), (UNTIED,) if bits == 8 else ())
        for bits, group, dtype in (
            (4, 32, "float16"), (4, 64, "bfloat16"), (4, 128, "float32"),
            (8, 32, "float32"), (8, 64, "float16"), (8, 128, "bfloat16"),
        )
    ),
    Spec("llama", "float32", None, (("attention_bias", True), ("mlp_bias", True), UNTIED), label="biased"),
    Spec("llama", "float16", None, (("rope_traditional", True),), label="traditional"),
    Spec("llama", "float32", (4, 64), (("rope_scaling", {"type": "linear", "factor": 4.0}),), label="linear"),
    Spec("llama", "bfloat16", None, (("rope_scaling", LLAMA3_SCALING),), label="llama3"),
    Spec("llama", "float32", None, rope_dims=16, label="partial"),
    Spec("llama", "float32", None, (("num_key_value_heads", 4),), label="mha"),
    Spec("llama", "float32", None, (("num_key_value_heads", 1),), label="mqa"),
    Spec("qwen2", "float16", (4, 64)),
    Spec("qwen2", "bfloat16", None, (UNTIED,)),
    Spec("qwen3", "float32", None),
    Spec("qwen3", "float16", (8, 32)),
    Spec("qwen3", "bfloat16", (4, 128), (UNTIED,)),
)  # fmt: skip
# Prefill into an empty and into a filled cache, decode at several offsets.
STEPS = (7, 1, 1, 3, 1)


def _programs(model: object) -> dict[str, dict[str, Program]]:
    captured = {name: capture(model, regime) for name, regime in REGIMES.items()}  # type: ignore[arg-type]
    return {
        "captured": captured,
        "canonical": {name: program.map(canonical) for name, program in captured.items()},
    }


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_graphs_equal_eager_mlx_bit_for_bit(spec: Spec) -> None:
    model = build(spec)
    variants = _programs(model)
    caches = {name: [KVCache() for _ in model.layers] for name in ("eager", *variants)}
    mx.disable_compile()
    try:
        for number, rows in enumerate(STEPS):
            tokens = tokens_of(rows, seed=number)
            eager = model(tokens, cache=caches["eager"])
            for name, programs in variants.items():
                program = programs["decode" if rows == 1 else "prefill"]
                assert same_bits(run_eagerly(program, model, tokens, caches[name]), eager), (name, number, rows)
    finally:
        mx.enable_compile()
    for name in variants:
        for ours, theirs in zip(caches[name], caches["eager"], strict=True):
            assert ours.offset == theirs.offset
            assert all(same_bits(a, b) for a, b in zip(stored(ours), stored(theirs), strict=True))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_canonical_block_says_what_the_block_is(spec: Spec) -> None:
    """Ops are those of the architecture: nothing of a fused op's decomposition is left."""
    for regime in REGIMES.values():
        graph = canonical(capture(build(spec), regime).blocks[0])
        found = [node.op for node in graph.nodes]
        count = lambda cls: sum(isinstance(op, cls) for op in found)  # noqa: B023, E731
        assert count(ops.Linear) == 7
        assert count(ops.RmsNorm) == (4 if spec.family == "qwen3" else 2)
        assert (count(ops.Rope), count(ops.Attention), count(ops.CacheUpdate)) == (2, 1, 1)
        assert count(ops.SwiGLU) == 1
        assert [op.fn for op in found if isinstance(op, ops.Binary)] == ["add", "add"]
        assert count(ops.Unary) == count(ops.Cast) == count(ops.Slice) == count(ops.Concat) == 0


def test_canonicalizing_twice_changes_nothing() -> None:
    graph = canonical(capture(build(Spec()), REGIMES["prefill"]).blocks[0])
    again, applied = canonicalize(graph)
    assert again is graph
    assert applied == ()


def test_rotary_settings_are_in_the_graph() -> None:
    def rope(spec: Spec) -> tuple[ops.Rope, int]:
        graph = capture(build(spec), REGIMES["decode"]).blocks[0]
        node = next(n for n in graph.nodes if isinstance(n.op, ops.Rope))
        assert isinstance(node.op, ops.Rope)
        return node.op, len(node.inputs)

    assert rope(Spec()) == (ops.Rope(32, 10000.0, 1.0, False), 2)
    assert rope(Spec(config=(("rope_traditional", True),))) == (ops.Rope(32, 10000.0, 1.0, True), 2)
    assert rope(Spec(config=(("rope_theta", 500000.0),))) == (ops.Rope(32, 500000.0, 1.0, False), 2)
    scaled = Spec(config=(("rope_scaling", {"type": "linear", "factor": 4.0}),))
    assert rope(scaled) == (ops.Rope(32, 10000.0, 0.25, False), 2)
    assert rope(Spec(rope_dims=16)) == (ops.Rope(16, 10000.0, 1.0, False), 2)
    assert rope(Spec(config=(("rope_scaling", LLAMA3_SCALING),))) == (ops.Rope(32, 0.0, 1.0, False), 3)


def test_frequency_tables_that_were_never_evaluated_are_captured() -> None:
    """A model that has just been loaded: nothing has needed its tables yet."""
    spec = Spec(config=(("rope_scaling", LLAMA3_SCALING),))
    model, evaluated = build(spec), capture(build(spec), REGIMES["decode"])
    for layer in model.layers:
        layer.self_attn.rope._freqs = layer.self_attn.rope._freqs + 0.0
    assert capture(model, REGIMES["decode"]).blocks == evaluated.blocks
