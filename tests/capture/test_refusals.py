"""What cannot be captured is said with the right reason, and never leaves a trace on the model or on MLX."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.base import create_attention_mask

from mlx_autoperfect.capture.blocks import find_blocks
from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.errors import Reason
from tests.models import REGIMES, Spec, build, capture, profile

_WIDTH = 32


class Block(nn.Module):
    """A block that passes through attention-free; tests replace what it does."""

    def __init__(self, body: Callable[[Any, mx.array, Any, Any], Any]) -> None:
        super().__init__()
        self.proj = nn.Linear(_WIDTH, _WIDTH)
        self.body = body

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        return self.body(self, x, mask, cache)


class Root(nn.Module):
    """Embedding, blocks, head, as mlx-lm's models are built; ``forward`` says how blocks are called."""

    def __init__(self, bodies: list[Any], forward: Any = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, _WIDTH)
        self.layers = [Block(body) for body in bodies]
        self.forward = forward

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        h = self.embed(tokens)
        if self.forward is not None:
            return self.forward(self, h, cache)
        mask = create_attention_mask(h, cache[0])
        for layer, item in zip(self.layers, cache, strict=True):
            h = layer(h, mask, item)
        return self.embed.as_linear(h)


def _plain(self: Any, x: mx.array, mask: Any, cache: Any) -> mx.array:
    return x + self.proj(x)


def _attend(self: Any, x: mx.array, mask: Any, cache: Any, **kwargs: Any) -> mx.array:
    q = self.proj(x)[:, None]
    k, v = cache.update_and_fetch(q, q)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1, mask=mask, **kwargs)[:, 0]


def _with_sinks(self: Any, x: mx.array, mask: Any, cache: Any) -> mx.array:
    return _attend(self, x, mask, cache, sinks=mx.zeros(1))


def _by_row(self: Any, x: mx.array, mask: Any, cache: Any) -> mx.array:
    for i in range(x.shape[1]):
        x = x + self.proj(x[:, i : i + 1])
    return x


def _computed_weight(self: Any, x: mx.array, mask: Any, cache: Any) -> mx.array:
    layer = nn.Linear(_WIDTH, _WIDTH, bias=False)
    layer.weight = self.proj.weight * 2
    return layer(x)


# What a block does -> (regime, reason code, words of the message).
_BODIES: dict[str, tuple[Any, str, Reason, str]] = {
    "sinks": (_with_sinks, "decode", Reason.UNSUPPORTED_PRIMITIVE, "sinks"),
    "returns a tuple": (lambda s, x, m, c: (s.proj(x), None), "decode", Reason.NOT_TRACEABLE, "tuple"),
    "returns nothing": (lambda s, x, m, c: None, "decode", Reason.NOT_TRACEABLE, "NoneType"),
    "host sync": (lambda s, x, m, c: x * s.proj(x).sum().item(), "decode", Reason.NOT_TRACEABLE, "eval"),
    "raises": (lambda s, x, m, c: x[{}], "decode", Reason.NOT_TRACEABLE, "Error"),
    "sorts": (lambda s, x, m, c: mx.argsort(x).astype(x.dtype), "decode", Reason.UNSUPPORTED_PRIMITIVE, "Sort"),
    "64 bit": (lambda s, x, m, c: x.astype(mx.uint64) + x, "decode", Reason.UNSUPPORTED_PRIMITIVE, "uint64"),
    "reads the cache": (lambda s, x, m, c: x * c.keys.sum(), "decode", Reason.UNSUPPORTED_CACHE, "cache.keys"),
    "trims the cache": (lambda s, x, m, c: x * c.trim(1), "decode", Reason.UNSUPPORTED_CACHE, "cache.trim"),
    "one op per row": (_by_row, "prefill", Reason.SHAPE_NOT_SYMBOLIC, "number of operations"),
    "pads to 8": (lambda s, x, m, c: mx.pad(x, [(0, 0), (0, 8 - x.shape[1]), (0, 0)])[:, : x.shape[1]], "prefill",
                  Reason.UNSUPPORTED_PRIMITIVE, "Pad"),
    "divides by rows": (lambda s, x, m, c: x / x.shape[1], "prefill", Reason.SHAPE_NOT_SYMBOLIC, "trace"),
    "computed weight": (_computed_weight, "decode", Reason.UNSUPPORTED_PRIMITIVE, "computed"),
    "large constant": (lambda s, x, m, c: x + mx.array([[float(i)] * _WIDTH for i in range(130)]).sum(0), "decode",
                       Reason.UNSUPPORTED_PRIMITIVE, "4160 elements"),
}  # fmt: skip


def _refused(model: nn.Module, regime: str) -> Any:
    with pytest.raises(CaptureError) as caught:
        capture(model, REGIMES[regime])
    return caught.value.failure


@pytest.mark.parametrize("name", _BODIES)
def test_a_block_that_cannot_be_captured(name: str) -> None:
    body, regime, reason, words = _BODIES[name]
    failure = _refused(Root([_plain, body]), regime)
    assert (failure.stage, failure.reason) == ("capture", reason)
    assert words in failure.detail


def test_the_same_root_with_plain_blocks_is_captured() -> None:
    for regime in REGIMES.values():
        assert len(capture(Root([_plain, _attend]), regime).blocks) == 2


def _twice(root: Any, h: mx.array, cache: Any) -> mx.array:
    return root.layers[0](root.layers[1](root.layers[0](h)))  # type: ignore[no-any-return]


def _updates(root: Any, h: mx.array, cache: Any) -> mx.array:
    cache[0].update_and_fetch(h[:, None], h[:, None])
    return root.layers[1](root.layers[0](h))  # type: ignore[no-any-return]


_ROOTS: dict[str, tuple[Any, Reason, str]] = {
    "calls a block twice": (_twice, Reason.NOT_TRACEABLE, "block 0 is called twice"),
    "skips a block": (lambda s, h, c: s.layers[1](h), Reason.NOT_TRACEABLE, "1 of 2 blocks"),
    "updates a cache": (_updates, Reason.UNSUPPORTED_CACHE, "outside the blocks"),
    "passes an array": (lambda s, h, c: s.layers[1](s.layers[0](h, h)), Reason.NOT_TRACEABLE, "called with a array"),
    "unpacks a tuple": (lambda s, h, c: s.layers[1](s.layers[0](h)[0], c)[0], Reason.NOT_TRACEABLE, ""),
    "waits": (lambda s, h, c: s.layers[1](s.layers[0](h)).sum().item(), Reason.NOT_TRACEABLE, "eval"),
}


@pytest.mark.parametrize("name", _ROOTS)
def test_a_root_that_cannot_be_captured(name: str) -> None:
    forward, reason, words = _ROOTS[name]
    failure = _refused(Root([_plain, _plain], forward), "decode")
    assert failure.reason is reason
    assert words in failure.detail


def test_a_sliding_window_is_refused() -> None:
    config = (("layer_types", ["full_attention", "sliding_attention"]), ("sliding_window", 16))
    failure = _refused(build(Spec(config=config)), "prefill")
    assert failure.reason is Reason.UNSUPPORTED_CACHE
    assert "sliding window" in failure.detail


def test_another_quantisation_is_refused() -> None:
    model = build(Spec(quant=None))
    nn.quantize(model, group_size=32, bits=4, mode="mxfp4")
    failure = _refused(model, "decode")
    assert failure.reason is Reason.UNSUPPORTED_FORMAT
    assert "mxfp4" in failure.detail


@pytest.mark.parametrize("layers", [None, [], ["not a module"], 3])
def test_a_model_without_blocks(layers: Any) -> None:
    model = nn.Module()
    if layers is not None:
        model.layers = layers
    with pytest.raises(CaptureError) as caught:
        find_blocks(model)
    assert caught.value.failure.reason is Reason.NO_BLOCKS


# What a trace touches, and has to give back.
_LEAVES = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)
_FAST = ("rms_norm", "layer_norm", "rope", "scaled_dot_product_attention")


def _world(model: nn.Module) -> list[Any]:
    return [
        *(getattr(mx.fast, name) for name in _FAST),
        *(cls.__call__ for cls in _LEAVES),
        *(cls.__dict__.get("as_linear") for cls in _LEAVES),
        *(type(module) for _, module in model.named_modules()),
        *(type(module).__call__ for _, module in model.named_modules()),
    ]


def _compile_is_on() -> bool:
    """Whether ``mx.compile`` runs its function only once for equal shapes."""
    calls = []

    @mx.compile  # type: ignore[untyped-decorator]
    def traced(x: mx.array) -> mx.array:
        calls.append(1)
        return x + 1

    traced(mx.zeros(3))
    traced(mx.zeros(3))
    return len(calls) == 1


@pytest.mark.parametrize("name", ["good", *_BODIES])
def test_nothing_is_left_behind(name: str) -> None:
    body, regime, *_ = _BODIES.get(name, (_attend, "prefill"))
    model = Root([_plain, body])
    world, modules = _world(model), dict(model.named_modules())
    params = dict(tree_flatten(model.parameters()))
    try:
        capture(model, REGIMES[regime])
    except CaptureError:
        assert name != "good"
    assert all(a is b for a, b in zip(world, _world(model), strict=True))
    assert {path: id(module) for path, module in model.named_modules()} == {k: id(v) for k, v in modules.items()}
    after = dict(tree_flatten(model.parameters()))
    assert {path: id(array) for path, array in after.items()} == {path: id(array) for path, array in params.items()}
    assert _compile_is_on()


def test_a_trace_reads_no_weights() -> None:
    """A model that was loaded lazily is captured without its weights in memory."""
    module = importlib.import_module("mlx_lm.models.llama")
    config = {**profile("llama")["tiny"], "vocab_size": 1 << 17}
    model = module.Model(module.ModelArgs.from_dict(config))
    embedding = 4 * 128 << 17
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    capture(model, REGIMES["decode"])
    assert mx.get_peak_memory() - before < embedding // 4
    mx.eval(model.model.embed_tokens.weight)
    assert mx.get_peak_memory() - before > 0.9 * embedding, "memory is measured here"


def test_compilation_that_the_user_switched_off_stays_off() -> None:
    mx.disable_compile()
    try:
        capture(build(Spec()), REGIMES["decode"])
        assert not _compile_is_on()
    finally:
        mx.enable_compile()
