"""``optimize`` is idempotent and leaves parameters alone; ``restore`` undoes it; copies are models of their own."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_autoperfect.api import disabled, optimize, restore, state_of
from mlx_autoperfect.hookspecs import Backend
from tests.models import build, parameters, randomize, same_bits, tokens_of
from tests.pipeline.e2e import LLAMA, QWEN3, close, twins


def _answers(model: nn.Module) -> list[mx.array]:
    from mlx_lm.models.cache import KVCache

    cache = [KVCache() for _ in model.layers]
    return [model(tokens_of(rows, rows), cache=cache) for rows in (5, 1, 19, 1)]


def _classes(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


@pytest.mark.parametrize("spec", [LLAMA, QWEN3], ids=str)
def test_restore_gives_back_what_was(spec: Any, cpu: Backend) -> None:
    model = build(spec)
    classes, params, before = _classes(model), parameters(model), _answers(model)
    assert optimize(model) is model
    patched = {path for path, cls in _classes(model).items() if cls is not classes[path]}
    assert {"", "model.layers.0", "model.layers.1", "model.layers.1.mlp.down_proj"} <= patched
    assert restore(model) is model
    assert _classes(model) == classes
    assert {k: id(v) for k, v in parameters(model).items()} == {k: id(v) for k, v in params.items()}
    assert all(same_bits(a, b) for a, b in zip(_answers(model), before, strict=True))
    assert state_of(model) is None


def test_optimizing_twice_is_optimizing_once(cpu: Backend) -> None:
    model = build(LLAMA)
    optimize(model)
    classes, state = _classes(model), state_of(model)
    optimize(model)
    assert _classes(model) == classes
    assert state_of(model) is state
    restore(model)
    assert not any(cls.__dict__.get("_autoperfect_original") for cls in _classes(model).values())


def test_restoring_what_is_not_patched_does_nothing(cpu: Backend) -> None:
    model = build(LLAMA)
    classes = _classes(model)
    assert restore(restore(model)) is model
    assert _classes(model) == classes


def test_a_restored_model_can_be_optimized_again(cpu: Backend) -> None:
    model = build(QWEN3)
    first = _answers(optimize(model))
    again = _answers(optimize(restore(model)))
    assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))


def test_patched_modules_look_like_themselves(cpu: Backend) -> None:
    stock, model = build(LLAMA), optimize(build(LLAMA))
    for (path, ours), (_, theirs) in zip(model.named_modules(), stock.named_modules(), strict=True):
        assert isinstance(ours, type(theirs)), path
        assert (type(ours).__name__, type(ours).__module__) == (type(theirs).__name__, type(theirs).__module__)
        assert sorted(ours) == sorted(theirs)
    assert sorted(parameters(model)) == sorted(parameters(stock))
    assert type(stock.layers[0]) is type(build(LLAMA).layers[0]), "other models keep their class"


def test_disabled_runs_mlx_lms_own_code(cpu: Backend) -> None:
    pair = twins(LLAMA)
    stock, fast = _answers(pair.stock), _answers(pair.fast)
    assert not all(same_bits(a, b) for a, b in zip(stock, fast, strict=True)), "the kernels round differently"
    with disabled(), disabled():
        inner = _answers(pair.fast)
    assert all(same_bits(a, b) for a, b in zip(stock, inner, strict=True))
    assert all(same_bits(a, b) for a, b in zip(fast, _answers(pair.fast), strict=True))


def test_disabled_ends_with_an_exception(cpu: Backend) -> None:
    pair = twins(LLAMA)
    fast = _answers(pair.fast)
    with pytest.raises(RuntimeError, match="mine"), disabled():
        raise RuntimeError("mine")
    assert all(same_bits(a, b) for a, b in zip(fast, _answers(pair.fast), strict=True))


def test_disabled_is_of_one_thread(cpu: Backend) -> None:
    import threading

    pair = twins(QWEN3)
    fast, seen = _answers(pair.fast), list[mx.array]()

    def other() -> None:
        found = _answers(pair.fast)
        mx.eval(found)
        seen.extend(found)

    with disabled():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == len(fast)
    assert all(same_bits(a, b) for a, b in zip(fast, seen, strict=True))


def test_a_copy_answers_like_its_original(cpu: Backend) -> None:
    pair = twins(QWEN3)
    copied = copy.deepcopy(pair.fast)
    assert all(close(a, b) for a, b in zip(_answers(copied), _answers(pair.stock), strict=True))
    assert copied.layers[0] is not pair.fast.layers[0]


def test_a_copy_has_weights_of_its_own(cpu: Backend) -> None:
    """Training a copy, or loading other weights into it, changes the copy's answers and no others."""
    pair, other = twins(QWEN3), build(QWEN3, seed=5)
    before = _answers(pair.fast)
    copied = copy.deepcopy(pair.fast)
    copied.update(other.parameters())
    assert all(close(a, b) for a, b in zip(_answers(copied), _answers(other), strict=True))
    assert all(same_bits(a, b) for a, b in zip(_answers(pair.fast), before, strict=True))


def test_changing_the_original_leaves_the_copy(cpu: Backend) -> None:
    pair = twins(QWEN3)
    copied, before = copy.deepcopy(pair.fast), _answers(pair.stock)
    pair.fast.update(build(QWEN3, seed=5).parameters())
    assert all(close(a, b) for a, b in zip(_answers(copied), before, strict=True))


def test_a_copy_of_a_restored_model_is_a_plain_model(cpu: Backend) -> None:
    pair = twins(LLAMA)
    copied = copy.deepcopy(restore(pair.fast))
    assert _classes(copied) == _classes(pair.stock)


def test_a_copy_can_be_restored(cpu: Backend) -> None:
    pair = twins(LLAMA)
    copied = restore(copy.deepcopy(pair.fast))
    assert _classes(copied) == _classes(pair.stock)
    assert all(same_bits(a, b) for a, b in zip(_answers(copied), _answers(pair.stock), strict=True))


def test_a_model_that_is_dropped_is_forgotten(cpu: Backend) -> None:
    import gc
    import weakref

    from mlx_autoperfect.api import state_of

    model = optimize(build(LLAMA))
    state = weakref.ref(state_of(model))
    assert state() is not None
    del model
    gc.collect()
    assert state() is None


def test_weights_of_a_dropped_model_are_freed(cpu: Backend) -> None:
    import gc
    import weakref

    model = optimize(build(LLAMA))
    layer = weakref.ref(model.layers[0])
    del model
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize("what", ["values", "dtype", "view"])
def test_replaced_weights_are_used(what: str, cpu: Backend) -> None:
    pair = twins(QWEN3)
    _answers(pair.fast)
    for model in (pair.stock, pair.fast):
        if what == "values":
            model.update(build(QWEN3, seed=3).parameters())
        elif what == "dtype":
            model.set_dtype(mx.float16)
        else:
            layer = model.layers[0].input_layernorm
            layer.weight = mx.stack([layer.weight * 2, layer.weight], axis=1)[:, 0]
    results = list(zip(_answers(pair.fast), _answers(pair.stock), strict=True))
    assert all(close(a, b) for a, b in results)


def test_weights_of_another_format_are_used(cpu: Backend) -> None:
    """A dense model that is quantised after ``optimize``."""
    from tests.pipeline.e2e import QWEN2

    pair = twins(QWEN2)
    _answers(pair.fast)
    for model in (pair.stock, pair.fast):
        nn.quantize(model, group_size=32, bits=4)
    assert all(close(a, b) for a, b in zip(_answers(pair.fast), _answers(pair.stock), strict=True))


def test_an_adapter_that_is_added_later_is_used(cpu: Backend) -> None:
    from mlx_lm.tuner.lora import LoRALinear

    pair = twins(QWEN3)
    _answers(pair.fast)
    for model in (pair.stock, pair.fast):
        for name in ("q_proj", "v_proj"):
            attention = model.layers[1].self_attn
            adapter = LoRALinear.from_base(attention[name], r=4)
            adapter.lora_b = mx.ones(adapter.lora_b.shape) * 0.05
            adapter.lora_a = mx.ones(adapter.lora_a.shape) * 0.1
            attention[name] = adapter
        model.eval()
    plain = _answers(build(QWEN3))
    results = list(zip(_answers(pair.fast), _answers(pair.stock), plain, strict=True))
    assert all(close(a, b) for a, b, _ in results)
    assert not any(close(b, c) for _, b, c in results), "the adapter matters"


def test_a_layer_that_is_removed_is_not_run(cpu: Backend) -> None:
    pair = twins(QWEN3)
    for model in (pair.stock, pair.fast):
        model.model.layers = model.model.layers[:1]
    assert all(close(a, b) for a, b in zip(_answers(pair.fast), _answers(pair.stock), strict=True))


def test_a_block_that_is_replaced_is_run(cpu: Backend) -> None:
    pair, other = twins(QWEN3), build(QWEN3, seed=9)
    for model in (pair.stock, pair.fast):
        model.model.layers[1] = other.layers[0]
    assert all(close(a, b) for a, b in zip(_answers(pair.fast), _answers(pair.stock), strict=True))


def test_random_weights_differ() -> None:
    """What the tests above rely on."""
    model = build(QWEN3)
    before = _answers(model)
    randomized = build(QWEN3)
    randomize(randomized.model.layers[1].input_layernorm, 7)
    assert not any(close(a, b) for a, b in zip(_answers(randomized), before, strict=True))
