"""What the tests of the templates share: operand types, error bounds, the libraries of one instruction set."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import template_harness as harness
import template_sources as sources
from numpy.typing import NDArray

F64 = NDArray[np.float64]
DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "f32": np.dtype(np.float32),
}
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


def make_kit(isa: harness.Isa, folder: Path, texts: dict[str, str]) -> Kit:
    """Compiles the texts and loads them."""
    built = harness.build_all(folder, texts, isa)
    return Kit(isa, harness.Driver(folder), {name: ctypes.CDLL(str(path)) for name, path in built.items()})


def encode(x: F64, ctype: str) -> harness.Array:
    """``x`` rounded to a type of the templates; bf16 as bits."""
    with np.errstate(over="ignore"):
        return harness.to_bf16(x) if ctype == "bf16" else x.astype(DTYPES[ctype])


def decode(x: harness.Array, ctype: str) -> F64:
    """The values of an array of a type of the templates."""
    with np.errstate(invalid="ignore"):
        return np.asarray(harness.from_bf16(x) if ctype == "bf16" else x, np.float64)


def check(got: harness.Array, exact: F64, size: F64, ctype: str) -> None:
    """Half an ulp of the output's type, and the rounding of a float32 sum whose terms have the given total size."""
    bound = HALF_ULP[ctype] * np.abs(exact) + 8 * EPS * size + SMALLEST[ctype]
    error = np.abs(decode(got, ctype) - exact)
    worst = np.unravel_index(np.argmax(np.where(np.isfinite(error), error / bound, np.inf)), error.shape)
    assert np.isfinite(error).all() and (error <= bound).all(), f"at {worst}: {got[worst]} for {exact[worst]}"
