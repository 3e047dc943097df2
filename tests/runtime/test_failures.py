"""A kernel that fails at run time is dropped, said once, and the call is answered by stock, cache intact."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.runtime.dispatch import Forwards
from mlx_autoperfect.runtime.stages import CachedKernelStage, CacheStage, Forward, KernelStage
from tests.models import stored, tokens_of
from tests.pipeline.e2e import QWEN3, Twins, close, twins

KINDS = {"one": 1, "few": 5, "many": 20}
ROOT_KINDS = {**KINDS, "in_place": 1}


class KernelFault(RuntimeError):
    """What the broken kernels of these tests raise."""


def _sequences(forward: Forward, after_update: bool) -> list[int]:
    """Positions of kernel stages before the first cache update, or after the last."""
    updates = [i for i, stage in enumerate(forward.stages) if isinstance(stage, CacheStage | CachedKernelStage)]
    kernels = [i for i, stage in enumerate(forward.stages) if isinstance(stage, KernelStage | CachedKernelStage)]
    if not any(isinstance(stage, CacheStage) for stage in forward.stages):
        # Every sequence updates caches itself.
        return kernels[-1:] if after_update else kernels[:1]
    return [i for i in kernels if (i > updates[-1] if after_update else i < updates[0])]


def _with_stage(forward: Forward, at: int, run: Any) -> Forward:
    """``forward`` with another kernel sequence as stage ``at``."""
    stage = forward.stages[at]
    assert isinstance(stage, KernelStage | CachedKernelStage)
    stages = (*forward.stages[:at], replace(stage, run=run), *forward.stages[at + 1 :])
    return Forward(stages, forward.size, forward.result)


def _break(forwards: Forwards, kind: str, after_update: bool) -> list[int]:
    """Makes one kernel sequence raise; returns the list that counts its calls."""
    calls: list[int] = []
    forward = getattr(forwards, kind)
    at = _sequences(forward, after_update)[0]

    def fault(values: Any, symbols: Any) -> Any:
        calls.append(1)
        raise KernelFault("boom")

    setattr(forwards, kind, _with_stage(forward, at, fault))
    return calls


def _same_caches(pair: Twins, caches: tuple[list[Any], list[Any]]) -> None:
    for ours, theirs in zip(*caches, strict=True):
        assert ours.offset == theirs.offset
        assert all(close(a, b) for a, b in zip(stored(ours), stored(theirs), strict=True))


@pytest.mark.parametrize("after_update", [False, True], ids=["before the cache", "after the cache"])
@pytest.mark.parametrize("kind", ROOT_KINDS)
def test_a_failing_forward_of_the_model(
    kind: str, after_update: bool, cpu: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    pair = twins(QWEN3)
    stock_caches, fast_caches = pair.caches()
    forwards = pair.state.forwards["model"]
    calls = _break(forwards, kind, after_update)
    if kind == "one":
        forwards.in_place = None  # it would be preferred
    # Something is in the cache already, so that a wrong row count shows.
    prompt = {"one": 7, "few": 30, "many": 7, "in_place": 7}[kind]
    with caplog.at_level(logging.WARNING, "mlx_autoperfect"):
        for number, rows in enumerate((prompt, ROOT_KINDS[kind], ROOT_KINDS[kind], 1)):
            tokens = tokens_of(rows, number)
            logits = pair.fast(tokens, cache=fast_caches)
            assert close(logits, pair.stock(tokens, cache=stock_caches))
    assert len(calls) == 1, "it is not tried again"
    assert getattr(forwards, kind) is None
    assert all(getattr(forwards, other) is not None for other in KINDS if other != kind)
    warnings = [r.getMessage() for r in caplog.records if r.name == "mlx_autoperfect"]
    assert len(warnings) == 1
    assert "model" in warnings[0] and "boom" in warnings[0] and "\n" not in warnings[0]
    _same_caches(pair, (fast_caches, stock_caches))


@pytest.mark.parametrize("after_update", [False, True], ids=["before the cache", "after the cache"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_forward_of_a_block(kind: str, after_update: bool, cpu: Backend) -> None:
    pair = twins(QWEN3)
    stock_caches, fast_caches = pair.caches()
    forwards = pair.state.forwards["model.layers.1"]
    calls = _break(forwards, kind, after_update)
    for number, rows in enumerate((9, KINDS[kind], KINDS[kind], 1)):
        h = mx.random.normal((1, rows, 128), key=mx.random.key(number))
        mask = None if rows == 1 else "causal"
        for index in range(2):
            ours = pair.fast.layers[index](h, mask, fast_caches[index])
            theirs = pair.stock.layers[index](h, mask, stock_caches[index])
            assert close(ours, theirs)
    assert len(calls) == 1
    assert getattr(forwards, kind) is None
    assert "boom" in forwards.dropped[0]
    _same_caches(pair, (fast_caches, stock_caches))


def test_root_and_blocks_may_fail_together(cpu: Backend) -> None:
    pair = twins(QWEN3)
    stock_caches, fast_caches = pair.caches()
    for name in ("model", "model.layers.0", "model.layers.1"):
        for kind in ROOT_KINDS if name == "model" else KINDS:
            _break(pair.state.forwards[name], kind, True)
    for number, rows in enumerate((20, 5, 1, 1)):
        tokens = tokens_of(rows, number)
        assert close(pair.fast(tokens, cache=fast_caches), pair.stock(tokens, cache=stock_caches))
    _same_caches(pair, (fast_caches, stock_caches))


def test_a_failing_leaf(cpu: Backend, caplog: pytest.LogCaptureFixture) -> None:
    pair = twins(QWEN3)
    path = "model.layers.0.mlp.up_proj"
    forwards = pair.state.forwards[path]
    forward = forwards.few
    assert forward is not None

    def fault(*_: Any) -> Any:
        raise KernelFault("boom")

    forwards.few = forwards.one = _with_stage(forward, 0, fault)
    x = mx.random.normal((3, 128), key=mx.random.key(0))
    with caplog.at_level(logging.WARNING, "mlx_autoperfect"):
        for _ in range(3):
            ours, theirs = (model.layers[0].mlp.up_proj(x) for model in (pair.fast, pair.stock))
            assert close(ours, theirs)
    assert len([r for r in caplog.records if path in r.getMessage()]) == 1
    assert forwards.few is None and forwards.one is None and forwards.many is not None


def test_a_keyboard_interrupt_is_not_swallowed(cpu: Backend) -> None:
    pair = twins(QWEN3)
    forwards = pair.state.forwards["model"]
    forward = forwards.few
    assert forward is not None

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    forwards.few = _with_stage(forward, _sequences(forward, False)[0], interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.fast(tokens_of(5), cache=pair.caches()[0])


def test_an_interrupted_call_leaves_the_caches_usable(cpu: Backend) -> None:
    """After Ctrl-C between two blocks, mlx-lm's own caches disagree; so may ours, but nothing answers wrongly."""
    pair = twins(QWEN3)
    stock_caches, fast_caches = pair.caches()
    for cache in (stock_caches, fast_caches):
        pair.stock(tokens_of(6), cache=cache)
    for caches in (stock_caches, fast_caches):
        pair.stock.layers[0](mx.ones((1, 1, 128)), None, caches[0])
    tokens = tokens_of(3, 1)
    assert close(pair.fast(tokens, cache=fast_caches), pair.stock(tokens, cache=stock_caches))
