"""The matrix templates against NumPy in float64: every format and type, tails, threads, instruction sets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import template_harness as harness
import template_sources as sources
from template_kit import DTYPES, F64, FORMATS, Kit, check, decode, encode, is_built, make_kit

pytestmark = pytest.mark.skipif(not harness.COMPILER, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module", params=harness.usable_isas(), ids=lambda isa: isa.name)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    isa: harness.Isa = request.param
    texts = {f"{anchor}_jobs": sources.jobs_source(anchor) for anchor in sources.ANCHORS}
    for anchor in sources.ANCHORS:
        for ctype in sources.CTYPES:
            wanted = tuple(form for form in FORMATS if form[1] == ctype and is_built(isa, form))
            texts[f"{anchor}_{ctype}"] = sources.linear_source(anchor, wanted)
    yield make_kit(isa, tmp_path_factory.mktemp(isa.name), texts)


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
