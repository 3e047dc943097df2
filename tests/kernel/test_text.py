"""The text form of kernels: printed and parsed back without loss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlx_autoperfect.errors import Failure
from mlx_autoperfect.kernel.ir import Kernel, Schedule
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect.kernel.text import parse_kernel, print_kernel
from tests.kernel.test_machine import SPECS
from tests.models import Spec, regions_of


def _kernels(spec: Spec) -> list[Kernel]:
    found = [lower(region, many_rows=many) for _, region in regions_of(spec) for many in (False, True)]
    return [kernel for kernel in found if not isinstance(kernel, Failure)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_kernels_round_trip(spec: Spec) -> None:
    for kernel in _kernels(spec):
        parsed = parse_kernel(print_kernel(kernel))
        assert parsed == kernel
        assert parsed.content_hash == kernel.content_hash


def test_a_schedule_round_trips_and_is_part_of_the_identity() -> None:
    kernel = _kernels(Spec())[0]
    scheduled = replace(kernel, schedule=Schedule((("rows", 4), ("unroll", 2))))
    assert parse_kernel(print_kernel(scheduled)) == scheduled
    assert scheduled.content_hash != kernel.content_hash


def test_kernels_of_one_model_have_distinct_identities() -> None:
    kernels = {k.content_hash: k for k in _kernels(Spec())}
    assert len(kernels) == len({print_kernel(k) for k in kernels.values()}) > 12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("anchor matvec", "anchor matvecs"),
        ("width=128", "width=wide"),
        ("= load i0 row (128 0)", "= lode i0 row (128 0)"),
        ("= load i0 row (128 0)", "= load i0 row"),
        ("in   i0 f16[1,1,128]", "in   i0 f17[1,1,128]"),
        ("yield x10", ""),
        ("{rows=1, width=128}", "{rows=1}"),
        ("{rows=1, width=128}", "{rows=1, width=128, height=3}"),
        ("  prologue", ""),
        ("kernel rms_qkv ", "kernel "),
        ("schedule {}", "schedule {rows}"),
        ("= const 1e-05", "= const small"),
    ],
)
def test_bad_text_is_refused(old: str, new: str) -> None:
    text = print_kernel(next(k for k in _kernels(Spec()) if k.name == "rms_qkv"))
    assert old in text
    with pytest.raises(ValueError, match="not the text of a kernel, near"):
        parse_kernel(text.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "\n", "kernel", "kernel a b"])
def test_truncated_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the text of a kernel"):
        parse_kernel(text)
