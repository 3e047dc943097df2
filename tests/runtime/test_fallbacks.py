"""Calls that the prepared forwards were not made for are answered by mlx-lm's own code, with the right values."""

from __future__ import annotations

import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import BatchKVCache, KVCache, QuantizedKVCache, RotatingKVCache

from mlx_autoperfect.hookspecs import Backend
from tests.models import Spec, same_bits, stored, tokens_of
from tests.pipeline.e2e import LLAMA, QWEN2, QWEN3, Twins, close, twins, ulps


@pytest.fixture(scope="module")
def pair(cpu: Backend) -> Twins:
    return twins(QWEN3)


def _both(pair: Twins, call: Any) -> tuple[mx.array, mx.array]:
    return call(pair.fast), call(pair.stock)


def _batch(rows: int) -> mx.array:
    return mx.concatenate([tokens_of(rows, 1), tokens_of(rows, 2)])


def _steps(model: Any, make: Any, *rows: int, batch: bool = False) -> mx.array:
    cache = [make() for _ in model.layers]
    results = [model((_batch if batch else tokens_of)(n), cache=cache) for n in rows]
    return mx.concatenate(results, axis=1)


_CALLS: dict[str, Any] = {
    "no cache": lambda m: m(tokens_of(9)),
    "no cache, one row": lambda m: m(tokens_of(1)),
    "cache=None": lambda m: m(tokens_of(9), cache=None),
    "cache by position": lambda m: m(tokens_of(9), [KVCache() for _ in m.layers]),
    "batch of two": lambda m: _steps(m, KVCache, 7, 1, 1, batch=True),
    "batch of two, no cache": lambda m: m(_batch(5)),
    "batch cache, left padding": lambda m: _steps(m, lambda: BatchKVCache([0, 2]), 7, 1, 1, batch=True),
    "batch cache of one": lambda m: _steps(m, lambda: BatchKVCache([0]), 7, 1, 1),
    "rotating cache": lambda m: _steps(m, lambda: RotatingKVCache(max_size=8), 6, 1, 1, 1, 1),
    "rotating cache, long prompt": lambda m: _steps(m, lambda: RotatingKVCache(max_size=8, keep=2), 20, 1, 1),
    "quantised cache": lambda m: _steps(m, lambda: QuantizedKVCache(group_size=32, bits=8), 7, 1, 1),
    "mixed caches": lambda m: m(tokens_of(5), cache=[KVCache(), RotatingKVCache(max_size=64)]),
    "embeddings": lambda m: m(
        tokens_of(5), cache=[KVCache() for _ in m.layers], input_embeddings=mx.ones((1, 5, 128)) * 0.1
    ),
    "caches as a tuple": lambda m: m(tokens_of(5), cache=tuple(KVCache() for _ in m.layers)),
    "inner model": lambda m: m.model(tokens_of(5), [KVCache() for _ in m.layers]),
    "one block": lambda m: m.layers[0](mx.ones((1, 4, 128)) * 0.2, "causal", KVCache()),
    "one block, no mask": lambda m: m.layers[0](mx.ones((1, 4, 128)) * 0.2, None, KVCache()),
    "one block, array mask": lambda m: m.layers[0](
        mx.random.normal((1, 4, 128), key=mx.random.key(1)), create_causal_mask(4), KVCache()
    ),
    "one block, no cache": lambda m: m.layers[0](mx.ones((1, 4, 128)) * 0.2, "causal"),
    "one block, keywords": lambda m: m.layers[0](mx.ones((1, 4, 128)) * 0.2, mask="causal", cache=KVCache()),
    "one leaf, three axes": lambda m: m.layers[0].mlp.up_proj(mx.ones((2, 3, 128)) * 0.3),
    "one leaf, one axis": lambda m: m.layers[0].mlp.up_proj(mx.ones((128,)) * 0.3),
    "one leaf, 16 bit": lambda m: m.layers[0].mlp.up_proj((mx.ones((3, 128)) * 0.3).astype(mx.float16)),
    "one leaf, a view": lambda m: m.layers[0].mlp.up_proj(mx.arange(128 * 6).reshape(128, 6).T * 1e-3),
    "one leaf, empty": lambda m: m.layers[0].mlp.up_proj(mx.ones((0, 128))),
    "int64 tokens": lambda m: m(tokens_of(5).astype(mx.int64), cache=[KVCache() for _ in m.layers]),
    "int32 tokens, one row": lambda m: m(tokens_of(1).astype(mx.int32), cache=[KVCache() for _ in m.layers]),
    "tokens as a view": lambda m: m(tokens_of(12)[:, ::2], cache=[KVCache() for _ in m.layers]),
}


@pytest.mark.parametrize("name", _CALLS)
def test_the_answer_is_stocks(name: str, pair: Twins) -> None:
    ours, theirs = _both(pair, _CALLS[name])
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert theirs.size == 0 or close(ours, theirs)


@pytest.mark.parametrize("name", ["no cache", "batch of two", "one block", "one leaf, three axes"])
def test_training_runs_mlx_lms_own_code(name: str, pair: Twins) -> None:
    try:
        pair.fast.train()
        pair.stock.train()
        ours, theirs = _both(pair, _CALLS[name])
        assert same_bits(ours, theirs)
    finally:
        pair.fast.eval()
        pair.stock.eval()


def test_gradients_are_stocks(cpu: Backend) -> None:
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    pair = twins(QWEN2)
    gradients = []
    # Compiling the backward pass of an activation would take longer than all else here.
    mx.disable_compile()
    for model in (pair.fast, pair.stock):
        model.train()

        def loss(m: Any) -> mx.array:
            return nn.losses.cross_entropy(m(tokens_of(6)), tokens_of(6, 1)).mean()

        value, grads = nn.value_and_grad(model, loss)(model)
        gradients.append((value, dict(tree_flatten(grads))))
        mx.eval(gradients[-1])
    mx.enable_compile()
    assert same_bits(gradients[0][0], gradients[1][0])
    assert sorted(gradients[0][1]) == sorted(gradients[1][1])
    assert all(same_bits(gradients[0][1][key], gradients[1][1][key]) for key in gradients[0][1])


def test_caches_at_different_offsets(pair: Twins) -> None:
    """The blocks' caches need not agree."""

    def call(model: Any) -> mx.array:
        caches = [KVCache() for _ in model.layers]
        model.layers[0](mx.ones((1, 3, 128)) * 0.2, "causal", cache=caches[0])
        return model(tokens_of(4), cache=caches)

    assert close(*_both(pair, call))


def test_a_trimmed_cache(pair: Twins) -> None:
    """Speculative decoding takes rejected tokens back."""

    def call(model: Any) -> mx.array:
        caches = [KVCache() for _ in model.layers]
        model(tokens_of(9), cache=caches)
        for cache in caches:
            cache.trim(4)
        return model(tokens_of(3, 7), cache=caches)

    assert close(*_both(pair, call))


def test_a_cache_that_was_saved_and_loaded(pair: Twins) -> None:
    def call(model: Any) -> mx.array:
        caches = [KVCache() for _ in model.layers]
        model(tokens_of(9), cache=caches)
        again = [KVCache() for _ in model.layers]
        for old, new in zip(caches, again, strict=True):
            new.state = old.state
        return model(tokens_of(1, 7), cache=again)

    assert close(*_both(pair, call))


def test_a_cache_filled_by_stock_goes_on_with_kernels(pair: Twins) -> None:
    caches = [[KVCache() for _ in pair.stock.layers] for _ in range(2)]
    for cache in caches:
        pair.stock(tokens_of(20), cache=cache)
    assert close(pair.fast(tokens_of(1, 3), cache=caches[0]), pair.stock(tokens_of(1, 3), cache=caches[1]))


def test_a_compiled_caller(pair: Twins) -> None:
    """A user's ``mx.compile`` around kernels of ours."""
    compiled = mx.compile(lambda x: pair.fast.layers[0].mlp.up_proj(x) @ mx.ones((256, 2)))
    for seed in range(2):
        x = mx.random.normal((3, 128), key=mx.random.key(seed))
        assert close(compiled(x), pair.stock.layers[0].mlp.up_proj(x) @ mx.ones((256, 2)))


def test_an_invalid_call_fails_as_it_does_without_us(pair: Twins) -> None:
    for args, kwargs in (((mx.ones((2, 3, 64)),), {}), ((), {})):
        errors = []
        for model in (pair.stock, pair.fast):
            with pytest.raises(Exception) as caught:
                model.layers[0].mlp.up_proj(*args, **kwargs)
            errors.append(type(caught.value))
        assert errors[0] is errors[1]
    assert close(*_both(pair, _CALLS["one leaf, three axes"]))


def test_nothing_was_dropped_on_the_way(cpu: Backend) -> None:
    """Ordinary calls of another kind must not cost the kernels that are there."""
    pair = twins(LLAMA)
    for name in ("no cache", "batch of two", "rotating cache", "quantised cache", "int64 tokens"):
        _CALLS[name](pair.fast)
    caches = pair.caches()[0]
    pair.fast(tokens_of(5), cache=caches)
    assert {name: f.dropped for name, f in pair.state.forwards.items() if f.dropped} == {}


def test_a_call_in_another_dtype_does_not_cost_the_kernels(cpu: Backend) -> None:
    """Embeddings in float32 for a float16 model: answered by stock, and the next call runs kernels again."""
    pair = twins(LLAMA)
    assert close(*_both(pair, _CALLS["embeddings"]))
    assert close(*_both(pair, _CALLS["one leaf, three axes"]))
    assert {name: f.dropped for name, f in pair.state.forwards.items() if f.dropped} == {}


def test_two_threads_generate_at_once(cpu: Backend) -> None:
    """Two caches, two threads, one model: each thread gets what it gets alone."""
    pair = twins(LLAMA)

    def generate(seed: int) -> list[np.ndarray[Any, Any]]:
        caches, found = [KVCache() for _ in pair.fast.layers], []
        for number, rows in enumerate((19, 1, 1, 5, 1, 1, 1)):
            logits = pair.fast(tokens_of(rows, seed * 100 + number), cache=caches)
            mx.eval(logits)
            found.append(np.array(logits.astype(mx.float32)))
        return found

    alone = {seed: generate(seed) for seed in (1, 2)}
    together: dict[int, Any] = {}
    barrier = threading.Barrier(2)

    def run(seed: int) -> None:
        barrier.wait()
        together[seed] = [generate(seed) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == {1, 2}
    for seed, runs in together.items():
        for found in runs:
            assert all(np.array_equal(a, b) for a, b in zip(found, alone[seed], strict=True))


def test_batches_of_the_caches_content(pair: Twins) -> None:
    """What a fallback leaves in the cache is what stock leaves there."""
    caches = pair.caches()
    for model, cache in zip((pair.fast, pair.stock), caches, strict=True):
        model(_batch(7), cache=cache)
        model(_batch(1), cache=cache)
    for ours, theirs in zip(*caches, strict=True):
        assert ours.offset == theirs.offset == 8
        assert all(close(a, b) for a, b in zip(stored(ours), stored(theirs), strict=True))


MIXED = Spec("llama", "float16", (4, 32))


@pytest.mark.parametrize("what", ["norms in float32", "scales in float32", "head in float32", "bias in bfloat16"])
def test_models_of_mixed_dtypes(what: str, cpu: Backend) -> None:
    """Checkpoints keep some parameters in another precision; types are promoted as MLX does."""
    from mlx_autoperfect.api import optimize
    from tests.models import Oracle, build

    def change(model: Any) -> Any:
        if what == "norms in float32":
            for layer in model.layers:
                layer.input_layernorm.weight = layer.input_layernorm.weight.astype(mx.float32)
        elif what == "scales in float32":
            proj = model.layers[0].mlp.up_proj
            proj.scales, proj.biases = proj.scales.astype(mx.float32), proj.biases.astype(mx.float32)
        elif what == "head in float32":
            model.model.norm.weight = model.model.norm.weight.astype(mx.float32)
        else:
            proj = model.layers[1].mlp.up_proj
            proj.bias = mx.ones(256, mx.bfloat16) * 0.5
        return model

    stock, fast = change(build(MIXED)), optimize(change(build(MIXED)))
    for rows in (5, 1):
        caches = [[KVCache() for _ in stock.layers] for _ in range(2)]
        ours, theirs = fast(tokens_of(rows), cache=caches[0]), stock(tokens_of(rows), cache=caches[1])
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        # Stock rounds to 16 bits inside whatever the type of the logits: both are held against float64.
        oracle = Oracle(stock)(tokens_of(rows))
        assert ulps(ours, oracle) <= ulps(theirs, oracle) + 0.25
