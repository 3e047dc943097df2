"""Optimized models answer like the float64 model, at least as closely as stock MLX does."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.pipeline import count_kernels
from tests.models import LLAMA3_SCALING, Oracle, Spec, profile, stored, tokens_of
from tests.pipeline.e2e import LLAMA, QWEN2, QWEN3, twins, ulps

SPECS = (
    LLAMA,
    QWEN2,
    QWEN3,
    Spec("llama", "float16", (4, 32), (("rope_traditional", True),), label="traditional"),
    Spec("llama", "float16", (4, 32), (("rope_scaling", LLAMA3_SCALING),), label="llama3"),
    Spec("llama", "float16", (4, 32), rope_dims=16, label="partial"),
)
# Prompt chunks for every kind of forward (one row, a few, many), then decoding.
STEPS = (20, 5, 1, 17, 40, 1, 1)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_logits_are_at_least_as_exact_as_stocks(spec: Spec, cpu: Backend) -> None:
    pair = twins(spec)
    oracle, tolerances = Oracle(pair.stock), profile(spec.family)["tolerances"]
    caches = pair.caches()
    worst = {"stock": 0.0, "fast": 0.0}
    for number, rows in enumerate(STEPS):
        tokens = tokens_of(rows, number)
        exact = oracle(tokens)
        for name, model, cache in zip(worst, (pair.stock, pair.fast), caches, strict=True):
            logits = model(tokens, cache=cache)
            assert logits.shape == exact.shape
            worst[name] = max(worst[name], ulps(logits, exact))
        assert logits.dtype == getattr(mx, spec.dtype)
    assert 0 < worst["fast"] <= worst["stock"] * tolerances["logits_over_stock"] + tolerances["logits_slack_ulp"]
    for index, (ours, theirs) in enumerate(zip(caches[1], caches[0], strict=True)):
        assert ours.offset == theirs.offset == sum(STEPS)
        for mine, other, exact in zip(stored(ours), stored(theirs), oracle.cache[index], strict=True):
            assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
            assert ulps(mine, exact) <= ulps(other, exact) + 0.5
        assert ours.keys.shape == theirs.keys.shape
    assert not any(forwards.dropped for forwards in pair.state.forwards.values())


@pytest.mark.parametrize("spec", [LLAMA, QWEN2, QWEN3], ids=str)
def test_every_region_has_a_proven_kernel(spec: Spec, cpu: Backend) -> None:
    state = twins(spec).state
    assert state.analysis.failures == []
    passed, rejected = count_kernels(state.analysis.outcomes.values())
    assert rejected == 0
    assert [str(o.failure) for o in state.analysis.outcomes.values() if o.failure is not None] == []
    assert passed == len(state.analysis.outcomes) > 20
    forwards = state.forwards["model"]
    assert forwards.one and forwards.few and forwards.many


def test_greedy_tokens_are_stocks(cpu: Backend) -> None:
    pair = twins(QWEN3)
    prompt = tokens_of(23)[0]
    answers = [
        [int(token) for token, _ in generate_step(prompt, model, max_tokens=12)] for model in (pair.stock, pair.fast)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 3


@pytest.mark.parametrize("spec", [LLAMA, QWEN3], ids=str)
def test_repeated_calls_give_the_same_bits(spec: Spec, cpu: Backend) -> None:
    from tests.models import same_bits

    pair = twins(spec)
    for rows in (1, 7, 33):
        results = [pair.fast(tokens_of(rows), cache=pair.caches()[0]) for _ in range(3)]
        assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("split", [(16, 17), (17, 16), (1, 32), (32, 1), (2, 31)], ids=str)
def test_a_prompt_in_chunks_answers_like_the_whole(split: tuple[int, int], cpu: Backend) -> None:
    """Row counts at the edges of the kinds of forward."""
    pair = twins(QWEN3)
    tokens, cache = tokens_of(33), pair.caches()[0]
    parts = [pair.fast(tokens[:, : split[0]], cache=cache), pair.fast(tokens[:, split[0] :], cache=cache)]
    whole = pair.stock(tokens, cache=pair.caches()[0])
    assert ulps(mx.concatenate(parts, axis=1), whole) < 64


def test_a_long_cache_grows_past_its_buffer(cpu: Backend) -> None:
    """Keys beyond the cache's first 256 positions, which move the buffer."""
    pair = twins(QWEN3)
    caches = pair.caches()
    for rows in (250, 5, 1, 1, 1, 1, 30):
        tokens = tokens_of(rows, rows)
        a, b = (model(tokens, cache=cache) for model, cache in zip((pair.stock, pair.fast), caches, strict=True))
        assert ulps(b, a) < 64
    assert caches[1][0].keys.shape[2] == 512
