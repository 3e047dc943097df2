"""Sequences that write to caches themselves: the memory is shared only while nobody else can see it."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

import mlx_autoperfect
from mlx_autoperfect.api import state_of
from mlx_autoperfect.hookspecs import Backend
from tests.models import Spec, build

PROMPT = list(range(1, 30))


@pytest.fixture(scope="module")
def pair(cpu: Backend) -> tuple[nn.Module, nn.Module]:
    """The same model twice: stock and patched, float32 so that answers agree closely."""
    spec = Spec(dtype="float32")
    stock, patched = build(spec), build(spec)
    mlx_autoperfect.optimize(patched)
    state = state_of(patched)
    assert state is not None and state.forwards["model"].in_place is not None
    return stock, patched


def prefill(model: nn.Module) -> list[Any]:
    caches: list[Any] = make_prompt_cache(model)
    mx.eval(model(mx.array([PROMPT]), cache=caches))
    return caches


def decode(model: nn.Module, caches: list[Any], tokens: list[int]) -> list[mx.array]:
    return [model(mx.array([[token]]), cache=caches) for token in tokens]


def same(a: list[mx.array], b: list[mx.array]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(np.array(x), np.array(y), rtol=2e-4, atol=2e-4)


def used(model: nn.Module) -> bool:
    state = state_of(model)
    assert state is not None
    return state.forwards["model"].in_place is not None and not state.forwards["model"].dropped


def test_steps_built_before_any_is_evaluated(pair: tuple[nn.Module, nn.Module]) -> None:
    _, patched = pair
    answers = [decode(model, prefill(model), [5, 6, 7, 8]) for model in pair]
    same(answers[0], answers[1])
    assert used(patched)


def test_beyond_the_buffer(pair: tuple[nn.Module, nn.Module]) -> None:
    """The cache grows in steps of 256 positions; the step that needs more room goes through the cache itself."""
    answers, caches = [], []
    for model in pair:
        cache: list[Any] = make_prompt_cache(model)
        mx.eval(model(mx.array([[1 + i % 90 for i in range(253)]]), cache=cache))
        logits = decode(model, cache, [3, 4, 5, 6, 7, 8])
        mx.eval(logits)
        answers.append(logits)
        caches.append(cache)
    same(answers[0], answers[1])
    for mine, theirs in zip(*caches, strict=True):
        assert mine.offset == theirs.offset == 259 and mine.keys.shape == theirs.keys.shape
        filled = [[part[..., :259, :] for part in (cache.keys, cache.values)] for cache in (mine, theirs)]
        same(*filled)
    assert used(pair[1])


@pytest.mark.parametrize("share", ["deepcopy", "state", "objects"])
def test_a_cache_that_somebody_else_holds_is_not_overwritten(pair: tuple[nn.Module, nn.Module], share: str) -> None:
    """Two continuations of one prompt: each answers as if it were alone, whichever is evaluated last."""
    stock, patched = pair
    alone = [decode(stock, prefill(stock), tokens) for tokens in ([5, 6, 7], [9, 10, 11])]
    first = prefill(patched)
    second = copy.deepcopy(first) if share == "deepcopy" else make_prompt_cache(patched)
    if share != "deepcopy":
        for mine, theirs in zip(second, first, strict=True):
            if share == "state":
                mine.state = theirs.state
            else:
                mine.keys, mine.values, mine.offset = theirs.keys, theirs.values, theirs.offset
    a, b = decode(patched, first, [5, 6]), decode(patched, second, [9, 10])
    mx.eval(a, b)
    a += decode(patched, first, [7])
    b += decode(patched, second, [11])
    same([*b, *a], [*alone[1], *alone[0]])


def test_buffers_kept_aside_keep_their_rows(pair: tuple[nn.Module, nn.Module]) -> None:
    _, patched = pair
    caches = prefill(patched)
    kept = [(cache.keys, cache.values) for cache in caches]
    before = [np.array(array) for both in kept for array in both]
    mx.eval(decode(patched, caches, [5, 6, 7]))
    after = [np.array(array) for both in kept for array in both]
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)


def test_trim_and_go_on(pair: tuple[nn.Module, nn.Module]) -> None:
    """Positions are written again after a trim; an answer that was not evaluated before keeps its own."""
    answers = []
    for model in pair:
        caches = prefill(model)
        early = decode(model, caches, [5, 6])
        for cache in caches:
            cache.trim(2)
        late = decode(model, caches, [9, 10])
        mx.eval(late)
        answers.append([*early, *late])
    same(answers[0], answers[1])


def test_the_buffer_is_reused(pair: tuple[nn.Module, nn.Module]) -> None:
    """A step must not copy the caches: peak memory stays where it is."""
    _, patched = pair
    caches: list[Any] = make_prompt_cache(patched)
    mx.eval(patched(mx.array([[1 + i % 90 for i in range(4000)]]), cache=caches))
    mx.eval(decode(patched, caches, [3]))
    size = sum(cache.nbytes for cache in caches)
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    for token in range(20):
        mx.eval(decode(patched, caches, [1 + token]))
    assert mx.get_peak_memory() - start < size / 4


def test_inside_compile_the_buffers_are_copied(pair: tuple[nn.Module, nn.Module]) -> None:
    """A compiled step may run again on the same arrays; it must find them as they were."""
    _, patched = pair
    caches = prefill(patched)
    state = [array for cache in caches for array in (cache.keys, cache.values)]
    mx.eval(state)
    before = [np.array(array) for array in state]
    offset = caches[0].offset

    def step(token: mx.array, buffers: list[mx.array]) -> mx.array:
        for i, cache in enumerate(caches):
            cache.keys, cache.values, cache.offset = buffers[2 * i], buffers[2 * i + 1], offset
        return patched(token, cache=caches)

    compiled = mx.compile(step)
    first = [compiled(mx.array([[5]]), state), compiled(mx.array([[6]]), state)]
    mx.eval(first)
    same([compiled(mx.array([[5]]), state)], [first[0]])
    for x, array in zip(before, state, strict=True):
        np.testing.assert_array_equal(x, np.array(array))
