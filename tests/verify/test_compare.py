"""How errors are measured and bounded."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.verify.compare import STOCK_FACTOR, ErrorStats, bound, error


def test_errors_are_in_units_of_the_rows_largest_value() -> None:
    oracle = np.array([[1.0, -4.0], [1e-3, 2e-3]])
    result = oracle + np.array([[0.0, 4 * DType.F16.epsilon * 3], [2e-3 * DType.F16.epsilon * 5, 0.0]])
    stats = error(result, oracle, DType.F16)
    assert stats.worst == pytest.approx(5.0)
    assert stats.mean == pytest.approx(2.0)
    assert stats.finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    stats = error(np.array([1.0, bad]), np.array([1.0, 2.0]), DType.F32)
    assert stats.worst == np.inf
    assert not stats.finite


def test_infinities_of_the_oracle_are_not_asked_for() -> None:
    assert error(np.array([1.0, np.inf]), np.array([1.0, np.inf]), DType.F32).finite


def test_zero_rows_do_not_divide_by_zero() -> None:
    assert error(np.zeros((2, 3)), np.zeros((2, 3)), DType.F16).worst == 0
    assert error(np.full((2, 3), 1e-3), np.zeros((2, 3)), DType.F16).worst > 1e3


def test_empty_results_have_no_error() -> None:
    assert error(np.zeros((0, 3)), np.zeros((0, 3)), DType.F16) == ErrorStats(0.0, 0.0, True)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16])
def test_the_bound_is_fixed_beforehand_and_follows_stock_only_down(dtype: DType) -> None:
    fixed = bound(dtype, 576, ErrorStats(1e9, 1e9, True))
    assert fixed == bound(dtype, 576, ErrorStats(1e6, 1e6, True)), "a bad stock does not loosen it"
    assert bound(dtype, 576, ErrorStats(0.0, 0.0, True)) == 1.0
    assert bound(dtype, 576, ErrorStats(0.1, 0.0, True)) == pytest.approx(min(fixed, STOCK_FACTOR * 0.1 + 1))


def test_the_bound_grows_with_the_sum_and_shrinks_with_the_mantissa() -> None:
    loose = ErrorStats(1e9, 1e9, True)
    assert bound(DType.F32, 4096, loose) > bound(DType.F32, 64, loose)
    assert bound(DType.F16, 4096, loose) < bound(DType.F32, 4096, loose)
    assert bound(DType.BF16, 1 << 20, loose) < 2
