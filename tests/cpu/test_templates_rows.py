"""Rotary embedding and attention against NumPy in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import template_harness as harness
import template_sources as sources
from template_kit import DTYPES, EPS, Kit, check, decode, encode, make_kit

pytestmark = pytest.mark.skipif(not harness.COMPILER, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module", params=harness.usable_isas(), ids=lambda isa: isa.name)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    isa: harness.Isa = request.param
    texts = {"rope": sources.ROPE}
    texts |= {f"attention_{name}": sources.attention_source(name) for name in sources.ATTENTION}
    yield make_kit(isa, tmp_path_factory.mktemp(isa.name), texts)


@pytest.mark.parametrize("traditional", [0, 1])
@pytest.mark.parametrize("explicit", [0, 1])
def test_rope(kit: Kit, traditional: int, explicit: int) -> None:
    rng = np.random.default_rng(3)
    cases = [(64, 64, 0), (64, 64, 1), (64, 32, 100000), (128, 128, 999_990), (96, 40, 17), (256, 256, 5), (20, 6, 9)]
    for width, dims, position in cases:
        base, scale = np.float32(10000.0), np.float32(0.75)
        freqs = (base ** (np.arange(0, dims, 2) / dims)).astype(np.float32)
        q = rng.standard_normal((3, 5, 2 * width)).astype(np.float32)[:, :, :width]
        k = rng.standard_normal((3, 2, width)).astype(np.float32)
        shape_q, shape_k = (((3, heads, width), DTYPES["f32"]) for heads in (5, 2))
        call = harness.Call(
            kit.libraries["rope"],
            f"rope{traditional}{explicit}",
            (q, k, freqs, np.array([scale, base], np.float32)),
            (shape_q, shape_k),
            (3, position, dims),
            (),
        )
        one, two = (kit.driver.run([call], threads)[0][0] for threads in (1, 2))
        exact_freqs = freqs.astype(np.float64) if explicit else float(base) ** (np.arange(0, dims, 2) / dims)
        angle = (position + np.arange(3.0))[:, None] * float(scale) / exact_freqs
        c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
        halves = (slice(0, dims // 2), slice(dims // 2, dims))
        first, second = (slice(0, dims, 2), slice(1, dims, 2)) if traditional else halves
        for x, got, again in zip((q, k), one, two, strict=True):
            exact = x.astype(np.float64)
            a, b = exact[..., first].copy(), exact[..., second].copy()
            exact[..., first], exact[..., second] = a * c - b * s, a * s + b * c
            np.testing.assert_allclose(got, exact, rtol=0, atol=4 * EPS * np.abs(x).max() * 2)
            np.testing.assert_array_equal(got, again)


def attention_case(
    kit: Kit, name: str, batch: int, heads: int, group: int, length: int, total: int, spread: float = 1.0
) -> None:
    qt, kvt, outt, d, dv, causal, _, flat = sources.ATTENTION[name]
    rng = np.random.default_rng(total * 31 + length)
    h = heads * group
    q = encode(spread * rng.standard_normal((batch, h, length, d)), qt)
    room = total + 9  # the cache has more room than is used, and the views start inside it
    k = encode(spread * rng.standard_normal((batch, heads, room, d + 8)), kvt)[:, :, 3 : 3 + total, :d]
    v = encode(rng.standard_normal((batch, heads, room, dv)), kvt)[:, :, 3 : 3 + total]
    if flat:
        operand = np.ascontiguousarray(q.transpose(0, 2, 1, 3)).reshape(batch, length, h * d)
        shape: tuple[int, ...] = (batch, length, h * dv)
    else:
        operand, shape = np.ascontiguousarray(q.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3), (batch, h, length, dv)
    call = harness.Call(
        kit.libraries[f"attention_{name}"],
        f"attention_{name}",
        (operand, k, v),
        ((shape, DTYPES[outt]),),
        (length,),
        (batch, h, heads, length, total),
    )
    one, two = (kit.driver.run([call], threads)[0][0][0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two, err_msg="the result depends on the number of threads")
    got = one.reshape(batch, length, h, dv).transpose(0, 2, 1, 3) if flat else one
    q64, k64, v64 = (decode(np.ascontiguousarray(part), t) for part, t in ((q, qt), (k, kvt), (v, kvt)))
    k64, v64 = np.repeat(k64, group, 1), np.repeat(v64, group, 1)
    logits = q64 @ k64.transpose(0, 1, 3, 2) * d**-0.5
    if causal:
        logits[..., np.triu(np.ones((length, total), bool), total - length + 1)] = -np.inf
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    size = (np.abs(q64) @ np.abs(k64).transpose(0, 1, 3, 2)).max() * d**-0.5 + 4
    check(got, p @ v64, (p @ np.abs(v64)) * size, outt)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("name", sources.ATTENTION)
def test_attention(kit: Kit, name: str, group: int) -> None:
    causal = sources.ATTENTION[name][5]
    for length in (1, 2, 5, 33):
        for total in (1, 2, 63, 64, 65, 257, 1000):
            if total >= length or not causal:
                attention_case(kit, name, 1, 2, group, length, total)


def test_attention_batches(kit: Kit) -> None:
    for length in (1, 3, 70):
        attention_case(kit, "f16_64", 2, 3, 3, length, 130)
        attention_case(kit, "f16_64_blhd", 3, 1, 5, length, 70)


def test_attention_is_stable_for_large_logits(kit: Kit) -> None:
    for length in (1, 33):
        attention_case(kit, "f16_64", 1, 2, 3, length, 257, spread=30.0)
