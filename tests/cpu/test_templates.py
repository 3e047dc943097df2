"""The CPU templates against NumPy in float64: every format and type, tails, threads, instruction sets."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import template_harness as harness
import template_sources as sources

pytestmark = pytest.mark.skipif(not harness.COMPILER, reason="no C++ compiler on this machine")

F64 = NDArray[np.float64]
DTYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(np.uint16), "f32": np.dtype(np.float32)}
HALF_ULP = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
SMALLEST = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149}
EPS = 2.0**-24
FORMATS = tuple((f"Affine<{bits}, {group}, {scale}>", scale) for bits, group, scale in sources.AFFINE) + tuple(
    (f"Dense<{scale}>", scale) for scale in sources.CTYPES
)


def is_built(isa: harness.Isa, form: tuple[str, str]) -> bool:
    """The widest instruction set gets every format; the others every format with f16 and a few with other types."""
    return isa == harness.usable_isas()[0] or form[1] == "f16" or form[0].startswith(("Affine<4, 64", "Dense"))


@dataclass(frozen=True)
class Kit:
    """The libraries of one instruction set."""

    isa: harness.Isa
    driver: harness.Driver
    libraries: dict[str, ctypes.CDLL]


@pytest.fixture(scope="module", params=harness.usable_isas(), ids=lambda isa: isa.name)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    isa: harness.Isa = request.param
    folder = tmp_path_factory.mktemp(isa.name)
    texts = {"math": sources.MATH, "rope": sources.ROPE}
    for anchor in sources.ANCHORS:
        texts[f"{anchor}_jobs"] = sources.jobs_source(anchor)
        for ctype in sources.CTYPES:
            wanted = tuple(form for form in FORMATS if form[1] == ctype and is_built(isa, form))
            texts[f"{anchor}_{ctype}"] = sources.linear_source(anchor, wanted)
    texts |= {f"attention_{name}": sources.attention_source(name) for name in sources.ATTENTION}
    built = harness.build_all(folder, texts, isa)
    yield Kit(isa, harness.Driver(folder), {name: ctypes.CDLL(str(path)) for name, path in built.items()})


def encode(x: F64, ctype: str) -> harness.Array:
    with np.errstate(over="ignore"):
        return harness.to_bf16(x) if ctype == "bf16" else x.astype(DTYPES[ctype])


def decode(x: harness.Array, ctype: str) -> F64:
    with np.errstate(invalid="ignore"):
        return (harness.from_bf16(x) if ctype == "bf16" else x).astype(np.float64)


# ---- vectors and elementary functions


def pointer(a: harness.Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(a.ctypes.data)


def apply(library: ctypes.CDLL, name: str, x: harness.Array, out: np.dtype[np.generic]) -> harness.Array:
    y = np.empty(x.size, out)
    getattr(library, name)(pointer(x), pointer(y), ctypes.c_int64(x.size))
    return y


def wide_range() -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    powers = 10.0 ** rng.uniform(-44, 38, 60000)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 88.7228, 88.7229, -87.4, -103.9, -104.1, 1.0, -1.0, 4.0, 0.62, 1e-40]
    parts = (rng.uniform(-110, 110, 60000), 3 * rng.standard_normal(60000), powers, -powers[:30000], special)
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "ulps"),
    [("vexp", 1.0), ("vlog", 1.0), ("vtanh", 1.5), ("verf", 1.5), ("vsigmoid", 2.5), ("vrsqrt", 1.5), ("vsqrt", 0.51)],
)
def test_elementary_functions_are_accurate_to_ulps(kit: Kit, name: str, ulps: float) -> None:
    x = wide_range()
    if name == "vsigmoid":
        x = x[~(x < -87)]  # below, the result is subnormal
    got = apply(kit.libraries["math"], f"u_{name}", x, np.dtype(np.float32))
    x64 = x.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = {
            "vexp": np.exp,
            "vlog": np.log,
            "vtanh": np.tanh,
            "verf": np.vectorize(math.erf),
            "vsigmoid": lambda v: 1 / (1 + np.exp(-v)),
            "vrsqrt": lambda v: 1 / np.sqrt(v),
            "vsqrt": np.sqrt,
        }[name](x64)
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~finite], rounded[~finite])
    spacing = np.spacing(np.maximum(np.abs(rounded[finite]), np.float32(2.0**-126))).astype(np.float64)
    assert np.max(np.abs(got[finite] - exact[finite]) / spacing) <= ulps


@pytest.mark.parametrize("target", sources.CTYPES)
@pytest.mark.parametrize("source", sources.CTYPES)
@pytest.mark.parametrize("how", ["c", "s"], ids=["vector", "scalar"])
def test_conversions_round_to_nearest_even(kit: Kit, how: str, source: str, target: str) -> None:
    values = wide_range()
    edges = np.array([65504, 65519.9, 65520, 2**-14, 2**-24, 2**-25, 1.00048828125, 1.0009765625, 1.00390625], np.float32)
    values = np.concatenate([values, edges, -edges])
    finite = values[np.isfinite(values)]
    x = encode(finite.astype(np.float64), source)
    with np.errstate(over="ignore"):
        got = apply(kit.libraries["math"], f"{how}_{source}_{target}", x, DTYPES[target])
        wide = harness.from_bf16(x) if source == "bf16" else x.astype(np.float32)
        expected = harness.to_bf16(wide[np.isfinite(wide)]) if target == "bf16" else wide[np.isfinite(wide)].astype(DTYPES[target])
    np.testing.assert_array_equal(got[np.isfinite(wide)], expected)


@pytest.mark.parametrize("target", sources.CTYPES)
@pytest.mark.parametrize("how", ["c", "s"], ids=["vector", "scalar"])
def test_conversions_keep_infinities_and_nan(kit: Kit, how: str, target: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    x = np.concatenate([x, np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)])
    got = decode(apply(kit.libraries["math"], f"{how}_f32_{target}", x, DTYPES[target]), target)
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan, -0.0, np.nan, np.nan])
    assert np.signbit(got[3])
    back = encode(np.array([np.inf, -np.inf]), target) if target != "bf16" else np.array([0x7F80, 0xFF80], np.uint16)
    np.testing.assert_array_equal(apply(kit.libraries["math"], f"{how}_{target}_f32", back, DTYPES["f32"]), [np.inf, -np.inf])


def test_every_f16_value_widens_exactly(kit: Kit) -> None:
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    for how in ("c", "s"):
        got = apply(kit.libraries["math"], f"{how}_f16_f32", x, DTYPES["f32"])
        np.testing.assert_array_equal(got, x.astype(np.float32))


def test_lane_shuffles(kit: Kit) -> None:
    library = kit.libraries["math"]
    lanes = library.lanes()
    x = np.random.default_rng(1).integers(-50, 50, lanes * max(lanes, 8)).astype(np.float32)
    transposed, reduced, parted = (np.empty(n, np.float32) for n in (lanes * lanes, lanes, 8 * lanes))
    library.rows(pointer(x), pointer(transposed), pointer(reduced), pointer(parted))
    square = x[: lanes * lanes].reshape(lanes, lanes)
    np.testing.assert_array_equal(transposed.reshape(lanes, lanes), square.T)
    np.testing.assert_array_equal(reduced, square.sum(1))
    np.testing.assert_array_equal(parted.reshape(8, lanes), x[: 8 * lanes].reshape(lanes, 8).T)
    sums = np.zeros(2 * lanes * lanes, np.float32)
    library.sums(pointer(x), pointer(sums), ctypes.c_int64(lanes * lanes))
    np.testing.assert_array_equal(sums[:: 2 * lanes], square.sum(1))
    np.testing.assert_array_equal(sums[1 :: 2 * lanes], square.max(1))


def test_comparisons_minimum_maximum_fma(kit: Kit) -> None:
    values = np.array([0.0, -1.0, 2.5, np.inf, -np.inf, np.nan, 3.0, -7.0], np.float32)
    a, b = (np.ascontiguousarray(g.ravel()) for g in np.meshgrid(values, values))
    out = np.empty((4, a.size), np.float32)
    kit.libraries["math"].binary(pointer(a), pointer(b), pointer(out), ctypes.c_int64(a.size))
    with np.errstate(invalid="ignore"):
        expected = (np.minimum(a, b), np.maximum(a, b), (a < b) + 2 * (a > b) + 4 * (a >= b) + 8 * (a == b), a * b - a)
    for got, want in zip(out, expected, strict=True):
        np.testing.assert_array_equal(got, want)


# ---- matrix products


@dataclass(frozen=True)
class Weights:
    """A matrix as operands, and what it means: w and the size of the terms that make it up."""

    operands: tuple[harness.Array, ...]
    value: F64
    size: F64


def make_weights(rng: np.random.Generator, kind: str, ctype: str, n: int, k: int) -> Weights:
    if kind.startswith("Dense"):
        w = encode(rng.standard_normal((n, k)), ctype)
        return Weights((w,), decode(w, ctype), np.abs(decode(w, ctype)))
    bits, group = (int(part) for part in kind[len("Affine<") :].split(",")[:2])
    fields = 32 // bits
    q = rng.integers(0, 2**bits, (n, k), dtype=np.uint64)
    words = (q.reshape(n, k // fields, fields) << (bits * np.arange(fields, dtype=np.uint64))).sum(2).astype(np.uint32)
    scales = encode(rng.uniform(0.01, 0.1, (n, k // group)), ctype)
    biases = encode(-rng.uniform(0.4, 0.6, (n, k // group)) * 2**bits * decode(scales, ctype), ctype)
    scale, bias = (np.repeat(decode(part, ctype), group, 1) for part in (scales, biases))
    return Weights((words, scales, biases), q * scale + bias, q * scale + np.abs(bias))


def check(got: harness.Array, exact: F64, size: F64, ctype: str) -> None:
    """Half an ulp of the output's type, and the rounding of a float32 sum whose terms have the given total size."""
    bound = HALF_ULP[ctype] * np.abs(exact) + 8 * EPS * size + SMALLEST[ctype]
    error = np.abs(decode(got, ctype) - exact)
    worst = np.unravel_index(np.argmax(np.where(np.isfinite(error), error / bound, np.inf)), error.shape)
    assert np.isfinite(error).all() and (error <= bound).all(), f"at {worst}: {got[worst]} for {exact[worst]}"


def shapes(kind: str) -> list[tuple[int, int, int]]:
    """(M, N, K) with every wanted M and N, and K that fill vectors, blocks and panels or do not."""
    if kind.startswith("Dense"):
        depths = [1, 7, 33, 129, 577]
    else:
        group = int(kind.split(",")[1])
        depths = [group, 3 * group, 576 if 576 % group == 0 else 640, 17 * group]
    counts, widths = [1, 2, 3, 4, 5, 16, 17, 33], [1, 15, 16, 17, 33, 100]
    chosen = [(m, widths[i % 6], depths[i % len(depths)]) for i, m in enumerate(counts)]
    chosen += [(counts[(i + 3) % 8], n, depths[(i + 1) % len(depths)]) for i, n in enumerate(widths)]
    return [*chosen, (1, 100, depths[-1]), (33, 100, depths[-1]), (1, 33, depths[1])]


@pytest.mark.parametrize(("kind", "ctype"), FORMATS, ids=lambda part: str(part))
@pytest.mark.parametrize("anchor", sources.ANCHORS)
def test_product_with_every_format(kit: Kit, anchor: str, kind: str, ctype: str) -> None:
    if not is_built(kit.isa, (kind, ctype)):
        pytest.skip("this format and type are tested on the widest instruction set")
    rng = np.random.default_rng(len(kind))
    for m, n, k in shapes(kind):
        x = encode(rng.standard_normal((m, k)), ctype)
        vector = rng.standard_normal(n).astype(np.float32)
        weights = make_weights(rng, kind, ctype, n, k)
        call = harness.Call(
            kit.libraries[f"{anchor}_{ctype}"],
            sources.format_name(kind, ctype),
            (x, vector, *weights.operands),
            (((m, n), DTYPES[ctype]),),
            (m,),
            (m, k),
        )
        outputs = [kit.driver.run([call], threads)[0][0][0] for threads in (1, 2)]
        x64 = decode(x, ctype)
        check(outputs[0], x64 @ weights.value.T + vector, np.abs(x64) @ weights.size.T + np.abs(vector), ctype)
        np.testing.assert_array_equal(outputs[0], outputs[1], err_msg="the result depends on the number of threads")


@pytest.mark.parametrize(
    ("anchor", "schedule"), [(anchor, i) for anchor, (_, all_) in sources.ANCHORS.items() for i in range(len(all_))]
)
def test_several_jobs_of_several_formats(kit: Kit, anchor: str, schedule: int) -> None:
    rng = np.random.default_rng(11)
    for m, n0, n1, n2, k in ((1, 100, 33, 17, 576), (2, 16, 1, 50, 320), (7, 65, 40, 129, 1152), (70, 33, 7, 16, 832)):
        x = encode(rng.standard_normal((m, k)), "f16")
        r1, r2 = (encode(rng.standard_normal((m, n)), "f16") for n in (n1, n2))
        gate, up = (make_weights(rng, "Affine<4, 32", "f16", n0, k) for _ in range(2))
        eight, dense = make_weights(rng, "Affine<8, 64", "f16", n1, k), make_weights(rng, "Dense", "bf16", n2, k)
        inputs = (x, r1, *gate.operands, *up.operands, *eight.operands, *dense.operands, r2)
        outputs = tuple(((m, n), DTYPES["f16"]) for n in (n0, n1, n2))
        call = harness.Call(kit.libraries[f"{anchor}_jobs"], f"jobs{schedule}", inputs, outputs, (m,), (m, k))
        got, again = (kit.driver.run([call], threads)[0][0] for threads in (1, 2))
        x64 = decode(x, "f16")
        normed = x64 / np.sqrt(np.mean(x64**2, 1, keepdims=True) + 1e-5)
        size = np.abs(normed)
        g, u = normed @ gate.value.T, normed @ up.value.T
        exact = g / (1 + np.exp(-g)) * u
        gated_size = (size @ gate.size.T) * np.abs(u) + (size @ up.size.T) * np.abs(g) + np.abs(exact)
        check(got[0], exact, 2 * gated_size, "f16")
        check(got[1], normed @ eight.value.T + decode(r1, "f16"), 2 * size @ eight.size.T, "f16")
        check(got[2], normed @ dense.value.T + decode(r2, "f16"), 2 * size @ dense.size.T, "f16")
        for one, two in zip(got, again, strict=True):
            np.testing.assert_array_equal(one, two)


def test_rows_do_not_depend_on_their_number(kit: Kit) -> None:
    rng = np.random.default_rng(5)
    weights = make_weights(rng, "Affine<4, 32", "f16", 48, 576)
    x = encode(rng.standard_normal((16, 576)), "f16")
    vector = np.zeros(48, np.float32)

    def product(rows: harness.Array) -> harness.Array:
        m = len(rows)
        name = sources.format_name("Affine<4, 32, f16>", "f16")
        out = (((m, 48), DTYPES["f16"]),)
        call = harness.Call(kit.libraries["matvec_f16"], name, (rows, vector, *weights.operands), out, (m,), (m, 576))
        return kit.driver.run([call], 2)[0][0][0]

    together = product(x)
    for i in range(16):
        np.testing.assert_array_equal(product(x[i : i + 1])[0], together[i])


# ---- rotary embedding


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
        first, second = (slice(0, dims, 2), slice(1, dims, 2)) if traditional else (slice(0, dims // 2), slice(dims // 2, dims))
        for x, got, again in zip((q, k), one, two, strict=True):
            exact = x.astype(np.float64)
            a, b = exact[..., first].copy(), exact[..., second].copy()
            exact[..., first], exact[..., second] = a * c - b * s, a * s + b * c
            np.testing.assert_allclose(got, exact, rtol=0, atol=4 * EPS * np.abs(x).max() * 2)
            np.testing.assert_array_equal(got, again)


# ---- attention


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
