"""Models of every kind go through ``optimize``: what cannot be made faster stays as it is, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_autoperfect.api import analyze, choose_backend, optimize, restore, state_of
from mlx_autoperfect.errors import Reason, SettingsError, UnavailableError
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.settings import Settings
from tests.models import Spec, build, same_bits, tokens_of
from tests.pipeline.e2e import LLAMA, QWEN3, UNTIED, close


class Layer(nn.Module):
    """A block that adds a projection; ``wait`` makes it read a value in the middle."""

    def __init__(self, wait: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(64, 64)
        self.wait = wait

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        factor = x.sum().item() * 0 + 1 if self.wait else 1
        return x + self.proj(x) * factor


class Model(nn.Module):
    """A model that no profile knows."""

    def __init__(self, waits: tuple[bool, ...]) -> None:
        super().__init__()
        self.embed = nn.Embedding(160, 64)
        self.layers = [Layer(wait) for wait in waits]
        self.head = nn.Linear(64, 160)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        h = self.embed(tokens)
        caches = cache or [None] * len(self.layers)
        mask = create_attention_mask(h, caches[0])
        for layer, item in zip(self.layers, caches, strict=True):
            h = layer(h, mask, item)
        return self.head(h)


class Plain(nn.Module):
    """No transformer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 160)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(nn.relu(self.up(x)))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    mx.random.seed(3)
    model = make()
    model.eval()
    mx.eval(model.parameters())
    return model


def _sliding() -> nn.Module:
    config = (("layer_types", ["full_attention", "sliding_attention"]), ("sliding_window", 16))
    return build(Spec("llama", "float32", (8, 64), config))


def _mxfp4() -> nn.Module:
    model = build(Spec("qwen3", "float32", None))
    nn.quantize(model, group_size=32, bits=4, mode="mxfp4")
    return model


def _three_bits() -> nn.Module:
    model = build(Spec("qwen3", "float32", None))
    nn.quantize(model, group_size=64, bits=3)
    return model


def _large_heads() -> nn.Module:
    return build(Spec("qwen3", "float32", (8, 64), (("head_dim", 320), UNTIED)))


# name -> (model, a reason that must be reported)
MODELS: dict[str, tuple[Callable[[], nn.Module], Reason]] = {
    "a block that waits": (lambda: Model((False, True)), Reason.NOT_TRACEABLE),
    "every block waits": (lambda: Model((True, True)), Reason.NOT_TRACEABLE),
    "no blocks": (lambda: Plain(), Reason.NO_BLOCKS),
    "layers that are no blocks": (lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 160)), Reason.NOT_TRACEABLE),
    "sliding window": (_sliding, Reason.UNSUPPORTED_CACHE),
    "mxfp4": (_mxfp4, Reason.UNSUPPORTED_FORMAT),
    "three bits": (_three_bits, Reason.UNSUPPORTED_FORMAT),
    "large heads": (_large_heads, Reason.UNSUPPORTED_LAYOUT),
}


def _input(model: nn.Module, rows: int) -> mx.array:
    return mx.ones((rows, 64)) * 0.3 if isinstance(model, nn.Sequential | Plain) else tokens_of(rows)


def _call(model: nn.Module, rows: tuple[int, ...]) -> list[mx.array]:
    if isinstance(model, nn.Sequential | Plain):
        return [model(_input(model, n)) for n in rows]
    cache = make_prompt_cache(model)
    return [model(_input(model, n), cache=cache) for n in rows]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_for_us_still_answers(name: str, cpu: Backend) -> None:
    make, reason = MODELS[name]
    stock, fast = _seeded(make), _seeded(make)
    assert optimize(fast) is fast
    state = state_of(fast)
    assert state is not None
    outcomes = [o.failure for o in state.analysis.outcomes.values() if o.failure is not None]
    reasons = {failure.reason for failure in (*state.analysis.failures, *outcomes)}
    assert reason in reasons
    for ours, theirs in zip(_call(fast, (5, 1, 20)), _call(stock, (5, 1, 20)), strict=True):
        assert close(ours, theirs)
    restore(fast)
    assert all(same_bits(a, b) for a, b in zip(_call(fast, (5, 1)), _call(stock, (5, 1)), strict=True))


def test_what_can_be_done_is_done_around_a_block_that_waits(cpu: Backend) -> None:
    model = optimize(_seeded(lambda: Model((False, True))))
    state = state_of(model)
    assert state is not None
    assert "layers.1.proj" in state.forwards, "its linear layer has a kernel all the same"
    assert any("layers.1" in failure.where for failure in state.analysis.failures)


def test_a_host_whose_caches_cannot_be_appended_to(cpu: Backend) -> None:
    """The host makes rotating caches for the model: its blocks stay as they are, and it says so."""
    model = build(QWEN3)
    model.make_cache = lambda: [RotatingKVCache(max_size=32) for _ in model.layers]
    optimize(model)
    state = state_of(model)
    assert state is not None
    assert Reason.UNSUPPORTED_CACHE in {failure.reason for failure in state.analysis.failures}
    stock, caches = build(QWEN3), [RotatingKVCache(max_size=32) for _ in model.layers]
    assert close(model(tokens_of(9), cache=model.make_cache()), stock(tokens_of(9), cache=caches))


@pytest.mark.parametrize("fuel", [0, 4])
def test_any_amount_of_fuel_answers_right(fuel: int, cpu: Backend, kernel_cache: Any) -> None:
    stock, model = build(QWEN3), build(QWEN3)
    optimize(model, settings=Settings(fuel=fuel, cache_dir=kernel_cache))
    state = state_of(model)
    assert state is not None
    fusions = {id(c.partition): len(c.partition.fusions) for c in state.analysis.graphs.values()}
    assert sum(fusions.values()) == fuel
    caches = [[KVCache() for _ in stock.layers] for _ in range(2)]
    for rows in (5, 1):
        assert close(model(tokens_of(rows), cache=caches[0]), stock(tokens_of(rows), cache=caches[1]))


def test_analyze_patches_nothing(cpu: Backend) -> None:
    model = build(LLAMA)
    classes = {path: type(module) for path, module in model.named_modules()}
    analysis, backend, _ = analyze(model)
    assert backend.name == "cpu"
    assert len(analysis.blocks) == 2 and len(set(analysis.kind_of_block)) == 1
    assert {path: type(module) for path, module in model.named_modules()} == classes
    assert state_of(model) is None


def test_equal_layers_share_kernels(cpu: Backend) -> None:
    two, four = (analyze(build(Spec("llama", "float16", (4, 32), (("num_hidden_layers", n),))))[0] for n in (2, 4))
    assert set(two.outcomes) == set(four.outcomes)
    assert len(four.blocks) == 4


def test_progress_is_told_and_ends(cpu: Backend) -> None:
    told: list[tuple[str, int, int]] = []
    analyze(build(LLAMA), progress=lambda *step: told.append(step))
    for stage in {name for name, _, _ in told}:
        done = [d for name, d, _ in told if name == stage]
        totals = {t for name, _, t in told if name == stage}
        assert done == sorted(done) and len(totals) == 1
        assert done[-1] == totals.pop()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AUTOPERFECT_FUEL", "abc", "whole number"),
        ("AUTOPERFECT_FUEL", "-1", "whole number"),
        ("AUTOPERFECT_THREADS", "0", "whole number"),
        ("AUTOPERFECT_DEBUG", "7", "from 0 to 6"),
        ("AUTOPERFECT", "maybe", "1 or 0"),
    ],
)
def test_a_bad_setting_is_said_before_anything_is_done(
    name: str, value: str, words: str, cpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    model = build(QWEN3)
    with pytest.raises(SettingsError, match=words) as caught:
        optimize(model)
    assert name in str(caught.value) and repr(value) in str(caught.value)
    assert state_of(model) is None


def test_a_backend_that_does_not_exist_is_said(cpu: Backend) -> None:
    with pytest.raises(UnavailableError, match="'tpu'") as caught:
        optimize(build(QWEN3), settings=Settings(backend="tpu"))
    assert caught.value.failure.reason is Reason.NO_BACKEND
    assert "cpu" in str(caught.value)


def test_a_backend_that_cannot_run_says_why() -> None:
    from mlx_autoperfect.errors import Failure, Stage

    class Broken:
        name = "broken"

        def status(self) -> Failure:
            return Failure(Stage.SETUP, Reason.NO_COMPILER, "there is no C++ compiler; install g++")

    class Hook:
        @staticmethod
        def autoperfect_backend() -> list[Any]:
            return [None, Broken()]

    class Manager:
        hook = Hook

    with pytest.raises(UnavailableError, match="install g\\+\\+") as caught:
        choose_backend(Settings(), Manager)
    assert caught.value.failure.reason is Reason.NO_COMPILER
