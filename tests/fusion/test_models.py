"""How the profiled families are cut: the expected regions, what they compute, and what identifies them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlx_autoperfect.errors import Reason
from mlx_autoperfect.fusion.inline import inline_blocks
from mlx_autoperfect.fusion.partition import partition
from mlx_autoperfect.graph import ops
from mlx_autoperfect.graph.graph import Node
from mlx_autoperfect.verify.judge import to_numpy
from tests.fusion.execution import Array, execute
from tests.models import (
    FAMILIES,
    LLAMA3_SCALING,
    REGIMES,
    Oracle,
    Spec,
    build,
    canonical,
    capture,
    parameters,
    partitions,
    profile,
    tokens_of,
)

UNTIED = ("tie_word_embeddings", False)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("quant", [None, (4, 64)], ids=["dense", "q4"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_regions_are_those_of_the_profile(family: str, regime: str, quant: Any, tied: bool) -> None:
    spec = Spec(family, quant=quant, config=(("tie_word_embeddings", tied),))
    expected = profile(family)["regions"][regime]
    head = "embed_tokens" if tied else "lm_head"
    for what, parts in partitions(build(spec), REGIMES[regime]).items():
        assert [region.name for region in parts.regions] == [name.format(head=head) for name in expected[what]]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_is_in_one_region(family: str) -> None:
    for parts in partitions(build(Spec(family)), REGIMES["prefill"]).values():
        covered = [value for region in parts.regions for value in region.nodes]
        views = {"reshape", "transpose"}
        wanted = [n.output for n in parts.graph.nodes if n.op.name not in views and n.op.kind != "effect"]
        assert sorted(covered) == sorted(wanted)


SPECS = (
    *(Spec(family, "float32", None) for family in FAMILIES),
    Spec("llama", "float32", (4, 32), (("rope_scaling", LLAMA3_SCALING), UNTIED), label="llama3"),
    Spec("llama", "float32", (8, 64), (("rope_traditional", True),), label="traditional"),
    Spec("llama", "float32", None, rope_dims=16, label="partial"),
    Spec("qwen2", "float32", (4, 128), (("num_key_value_heads", 1),), label="mqa"),
)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_regions_together_compute_the_model(spec: Spec) -> None:
    """Root and inlined blocks, region by region in float64, against the uncut graphs."""
    model = build(spec)
    oracle, cache = Oracle(model), dict[int, tuple[Array, Array]]()
    lookup = {path: to_numpy(array) for path, array in parameters(model).items()}
    programs = {name: capture(model, regime).map(canonical) for name, regime in REGIMES.items()}
    whole = {
        name: inline_blocks(
            partition(program.root),
            list(zip(program.paths, map(partition, program.blocks), strict=True)),
        )
        for name, program in programs.items()
    }

    def update(node: Node, arguments: tuple[Array, ...]) -> tuple[Array, ...]:
        assert isinstance(node.op, ops.CacheUpdate)
        before = cache.get(node.op.index)
        joined = arguments if before is None else tuple(
            np.concatenate(pair, axis=2) for pair in zip(before, arguments, strict=True)
        )  # fmt: skip
        cache[node.op.index] = joined[0], joined[1]
        return joined

    offset = 0
    for number, rows in enumerate((5, 1, 3, 1)):
        tokens = tokens_of(rows, number)
        cut = whole["decode" if rows == 1 else "prefill"]
        logits = execute(cut, [np.array(tokens), np.asarray(offset)], lookup, effect=update)[0]
        np.testing.assert_allclose(logits, oracle(tokens), rtol=1e-11, atol=1e-11)
        offset += rows


def test_fuel_is_spent_one_fusion_at_a_time() -> None:
    model = build(Spec())
    full = partitions(model, REGIMES["decode"])
    total = sum(len(parts.fusions) for parts in full.values())
    before: list[Any] = []
    for amount in range(total + 2):
        parts = partitions(model, REGIMES["decode"], amount)
        fusions = [(f.first, f.second) for p in parts.values() for f in p.fusions]
        assert len(fusions) == min(amount, total)
        assert fusions[: len(before)] == before, "more fuel only adds fusions"
        starved = [f for p in parts.values() for f in p.refused if f.reason is Reason.OUT_OF_FUEL]
        assert bool(starved) == (amount < total)
        before = fusions
    assert [r.signature for r in parts["block"].regions] == [r.signature for r in full["block"].regions]


@pytest.mark.parametrize("amount", [0, 1, 3, 5])
def test_any_amount_of_fuel_computes_the_same(amount: int) -> None:
    model = build(Spec("qwen3", "float32", None))
    lookup = {path: to_numpy(array) for path, array in parameters(model.layers[0]).items()}
    h = np.random.default_rng(0).standard_normal((1, 4, 128))

    def first(_: Node, arguments: tuple[Array, ...]) -> tuple[Array, ...]:
        return arguments

    results = [
        execute(partitions(model, REGIMES["prefill"], fuel)["block"], [h, np.asarray(0)], lookup, effect=first)[0]
        for fuel in (None, amount)
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12, atol=1e-12)


_PRINT = """
import sys
sys.path.insert(0, {root!r})
from tests.models import REGIMES, Spec, build, partitions
for family in ("llama", "qwen3"):
    for regime in REGIMES.values():
        for what, parts in partitions(build(Spec(family)), regime).items():
            print(what, [(r.name, r.signature, r.inputs, r.outputs, r.nodes) for r in parts.regions])
            print(parts.fusions, [str(f) for f in parts.refused])
"""


def test_a_partition_is_the_same_in_every_process() -> None:
    from pathlib import Path

    code = _PRINT.format(root=str(Path(__file__).parents[2]))
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": "plugins"},
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "4242")
    }  # fmt: skip
    assert len(outputs) == 1
    assert "rms_gate_up_swiglu" in outputs.pop()


def _signatures(spec: Spec, regime: str = "decode") -> dict[str, str]:
    return {r.name: r.signature for parts in partitions(build(spec), REGIMES[regime]).values() for r in parts.regions}


_BASE = _signatures(Spec())
# What changes -> the regions whose signatures must change; the others must not.
_CHANGES: dict[str, tuple[Spec, set[str]]] = {
    "eps": (Spec(config=(("rms_norm_eps", 1e-6),)), {"rms_qkv", "rms_gate_up_swiglu", "rms_embed_tokens"}),
    "theta": (Spec(config=(("rope_theta", 10001.0),)), {"rope"}),
    "traditional": (Spec(config=(("rope_traditional", True),)), {"rope"}),
    "scale of positions": (Spec(config=(("rope_scaling", {"type": "linear", "factor": 2.0}),)), {"rope"}),
    "rotated features": (Spec(rope_dims=16), {"rope"}),
    "inner width": (Spec(config=(("intermediate_size", 384),)), {"rms_gate_up_swiglu", "down_residual"}),
    "vocabulary": (Spec(config=(("vocab_size", 192),)), {"embedding", "rms_embed_tokens"}),
    "key heads": (Spec(config=(("num_key_value_heads", 4),)), {"rms_qkv", "rope", "attention"}),
    "bits": (Spec(quant=(8, 32)), set(_BASE) - {"rope", "attention"}),
    "group": (Spec(quant=(4, 64)), set(_BASE) - {"rope", "attention"}),
    "dense": (Spec(quant=None), set(_BASE) - {"rope", "attention"}),
    "dtype": (Spec(dtype="bfloat16"), set(_BASE)),
    "hidden width": (Spec(config=(("hidden_size", 256),)), set(_BASE) - {"rope", "attention"}),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_a_signature_holds_every_constant(name: str) -> None:
    spec, changed = _CHANGES[name]
    found = _signatures(spec)
    assert set(found) == set(_BASE)
    assert {region for region in found if found[region] != _BASE[region]} == changed


def test_a_signature_holds_the_scale_and_the_mask_of_attention() -> None:
    graph = canonical(capture(build(Spec()), REGIMES["prefill"]).blocks[0])

    def signature(change: ops.Attention) -> str:
        nodes = tuple(replace(n, op=change) if isinstance(n.op, ops.Attention) else n for n in graph.nodes)
        return next(r.signature for r in partition(replace(graph, nodes=nodes)).regions if r.name == "attention")

    variants = [ops.Attention(s, c) for s in (0.5, 0.25) for c in (True, False)]
    assert len({signature(op) for op in variants}) == 4


def test_a_signature_holds_the_regime() -> None:
    shared = set(_signatures(Spec()).values()) & set(_signatures(Spec(), "prefill").values())
    assert shared == set()


def test_a_signature_does_not_hold_names_or_positions() -> None:
    program = capture(build(Spec()), REGIMES["decode"]).map(canonical)
    first, second = (partition(graph) for graph in program.blocks)
    assert [r.signature for r in first.regions] == [r.signature for r in second.regions]
    graph = program.blocks[0]
    renamed = replace(
        graph,
        name="elsewhere",
        params=tuple(replace(p, path=f"other.{i}") for i, p in enumerate(graph.params)),
        nodes=tuple(replace(n, origin="other") for n in graph.nodes),
    )
    assert [r.signature for r in partition(renamed).regions] == [r.signature for r in first.regions]


def test_llama_and_qwen3_share_what_is_equal() -> None:
    other = _signatures(Spec("qwen3"))
    shared = {name for name in other if _BASE.get(name) == other[name]}
    assert {"attention", "o_residual", "rms_gate_up_swiglu", "down_residual", "embedding"} <= shared
