"""The vector layer: elementary functions, conversions, shuffles, on every instruction set of this machine."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import template_harness as harness
import template_sources as sources
from template_kit import DTYPES, F64, Kit, decode, encode, make_kit

pytestmark = pytest.mark.skipif(not harness.COMPILER, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module", params=harness.usable_isas(), ids=lambda isa: isa.name)
def kit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    isa: harness.Isa = request.param
    texts = {"math": sources.MATH}
    yield make_kit(isa, tmp_path_factory.mktemp(isa.name), texts)


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
        functions: dict[str, Callable[[F64], F64]] = {
            "vexp": np.exp,
            "vlog": np.log,
            "vtanh": np.tanh,
            "verf": np.vectorize(math.erf),
            "vsigmoid": lambda v: 1 / (1 + np.exp(-v)),
            "vrsqrt": lambda v: 1 / np.sqrt(v),
            "vsqrt": np.sqrt,
        }
        exact = functions[name](x64)
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
    edges = np.array([65504, 65519.9, 65520, 2**-14, 2**-24, 2**-25, 1 + 2**-11, 1 + 2**-10, 1 + 2**-8], np.float32)
    values = np.concatenate([values, edges, -edges])
    finite = values[np.isfinite(values)]
    x = encode(finite.astype(np.float64), source)
    with np.errstate(over="ignore"):
        got = apply(kit.libraries["math"], f"{how}_{source}_{target}", x, DTYPES[target])
        wide = decode(x, source)
        kept = wide[np.isfinite(wide)]
        expected = encode(kept, target)
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
    widened = apply(kit.libraries["math"], f"{how}_{target}_f32", back, DTYPES["f32"])
    np.testing.assert_array_equal(widened, [np.inf, -np.inf])


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
