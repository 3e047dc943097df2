"""The judge: is this kernel right on this machine?

The reference is the region's graph in float64, which shares nothing with code generation. Each case
runs with its outputs poisoned by several patterns and is repeated; all runs must agree bit for bit.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.graph.on_float64 import run_on_float64
from mlx_autoperfect.graph.on_mlx import run_on_mlx
from mlx_autoperfect.graph.types import ArrayType, WeightType
from mlx_autoperfect.hookspecs import Backend, Launch, SequenceSpec, Slot
from mlx_autoperfect.kernel.abi import flat_inputs
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.verify.cases import Case, Draws, Setting
from mlx_autoperfect.verify.compare import ErrorStats, bound, error

HARNESS = 4
"""Version of the judge: verdicts of another version do not count."""

SYMBOLS = ("L", "offset", "T")
# Bytes that make NaN (all ones), a huge value, and a plausible one in every float type.
_POISONS = (0xFF, 0x7B, 0x3C)
_REPEATS = 2
# Stock's CPU products of 16-bit floats take seconds; there its error, which is only reported, is taken on a part.
_STOCK_ROWS = 2
_STOCK_COLUMNS = 512
# Inputs above this many elements (weights) are not compared before and after.
_COMPARED_INPUT = 1 << 20
# Kinds of values to try when the first kind makes a result that is nearly constant.
_FALLBACK_KINDS = ("normal", "large")

Array = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    Attributes:
        reason: empty when the kernel passed, else the reason code.
        detail: one sentence for a person.
        cases: how many cases were judged.
        worst: largest error, in units in the last place of the row's largest value.
        stock: stock MLX's largest error on the same cases, in the same units.
        seed: replays the cases.
    """

    reason: str
    detail: str
    cases: int
    worst: float
    stock: float
    seed: int
    name: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason

    @property
    def failure(self) -> Failure | None:
        if self.passed:
            return None
        return Failure(Stage.VERIFY, Reason(self.reason), self.detail, self.name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """Reads what ``to_json`` wrote. Raises ``ValueError`` or ``TypeError`` on anything else."""
        verdict = cls(**data)
        if not isinstance(verdict.reason, str):
            raise TypeError(f"a verdict's reason is a text, not {verdict.reason!r}")
        if verdict.reason:
            Reason(verdict.reason)
        return verdict


@dataclass(frozen=True)
class _Measured:
    worst: float
    stock: float


class _Rejected(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def to_numpy(array: mx.array) -> Array:
    """An array on the host; bfloat16, which NumPy lacks, as float32 (exact)."""
    if array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)
    return np.array(array)


def _bits(array: mx.array) -> bytes:
    return np.array(mx.view(array if array.ndim else array[None], mx.uint8)).tobytes()


def single_launch(kernel: Kernel, executable: Any, backend: Backend) -> Any:
    """A sequence of this one kernel: ``(arrays in ABI order, [L, offset, T]) -> outputs``."""
    inputs = flat_inputs(kernel)
    count = len(inputs)
    outputs = []
    for operand in kernel.outputs:
        assert isinstance(operand.type, ArrayType)
        outputs.append(Slot(operand.name, operand.type.dtype, operand.type.shape))
    launch = Launch(executable, tuple(range(count)), tuple(count + i for i in range(len(outputs))))
    slots = tuple(Slot(a.operand, a.dtype, a.shape, a.strided) for a in inputs)
    return backend.sequence(SequenceSpec((launch,), slots, tuple(outputs), (), SYMBOLS))


def _arguments(region: Region, kernel: Kernel, case: Case) -> list[mx.array]:
    arrays = [case.inputs[name] for name, _ in region.graph.inputs if name not in kernel.scalars]
    for param in region.graph.params:
        names = [f"{param.path}.{part}" for part in param.parts] if param.parts else [param.path]
        arrays += [case.params[name] for name in names]
    return arrays


def _oracle(region: Region, case: Case) -> list[Array]:
    inputs = [np.asarray(x) if isinstance(x, int) else to_numpy(x) for x in _ordered(region, case)]
    return run_on_float64(region.graph, inputs, {k: to_numpy(v) for k, v in case.params.items()})


def _ordered(region: Region, case: Case) -> list[Any]:
    return [case.inputs[name] for name, _ in region.graph.inputs]


def _stock_error(region: Region, case: Case, oracle: Sequence[Array]) -> ErrorStats:
    """Stock MLX's error on the case (for slow dtypes on a part: rows and columns are independent)."""
    inputs, params, wanted = _ordered(region, case), dict(case.params), list(oracle)
    slow = all(_output_dtype(region, i) is not DType.F32 for i in range(len(oracle)))
    if slow and region.kind is RegionKind.GEMM and not _has_views(region):
        inputs = [x[:, :_STOCK_ROWS] if x.ndim == 3 else x[:_STOCK_ROWS] for x in inputs]
        wanted = [o[:, :_STOCK_ROWS] if o.ndim == 3 else o[:_STOCK_ROWS] for o in wanted]
        if _one_plain_product(region):
            for param in region.graph.params:
                for part in param.parts:
                    params[f"{param.path}.{part}"] = params[f"{param.path}.{part}"][:_STOCK_COLUMNS]
            wanted = [o[..., :_STOCK_COLUMNS] for o in wanted]
    arrays = [mx.array(x, mx.int32) if isinstance(x, int) else x for x in inputs]
    results = run_on_mlx(region.graph, arrays, params)
    stats = [_error_of(r, w, region, i) for i, (r, w) in enumerate(zip(results, wanted, strict=True))]
    return ErrorStats(max(s.worst for s in stats), max(s.mean for s in stats), all(s.finite for s in stats))


def _has_views(region: Region) -> bool:
    from mlx_autoperfect.fusion.views import is_view

    return any(is_view(node) for node in region.graph.nodes)


def _one_plain_product(region: Region) -> bool:
    """Whether the only operation after the rows are made is one product without bias or epilogue."""
    consumers = [n for n in region.graph.nodes if n.op.name == "linear"]
    return len(consumers) == 1 and consumers[0].output in region.graph.outputs and len(consumers[0].inputs) == 2


def _output_dtype(region: Region, index: int) -> DType:
    type_ = region.graph.types[region.graph.outputs[index]]
    assert isinstance(type_, ArrayType)
    return type_.dtype


def _error_of(result: mx.array, oracle: Array, region: Region, index: int) -> ErrorStats:
    return error(to_numpy(result), oracle, _output_dtype(region, index))


def _length(region: Region, case: Case) -> int:
    """The longest float32 sum in the region."""
    widths = [t.shape[1] for t in region.graph.types.values() if isinstance(t, WeightType)]
    rows = [d for _, t in region.graph.inputs for d in t.shape[-1:] if isinstance(d, int)]
    return max([*widths, *rows, case.keys if region.kind is RegionKind.ATTENTION else 1])


def _runs(launch: Any, arrays: list[mx.array], case: Case, backend: Backend) -> list[mx.array]:
    """Runs under every poison and repeatedly: the results must be the same bits, the inputs unchanged."""
    symbols = [case.rows, case.offset, case.keys]
    mx.eval(arrays)
    small = [a for a in arrays if a.size < _COMPARED_INPUT]
    before = [_bits(a) for a in small]
    first: list[mx.array] | None = None
    try:
        for poison in (*_POISONS, *(None for _ in range(_REPEATS))):
            backend.poison(poison)
            results = launch(arrays, symbols)
            mx.eval(results)
            first = first or results
            if any(_bits(a) != _bits(b) for a, b in zip(first, results, strict=True)):
                if poison is None:
                    raise _Rejected(Reason.NON_DETERMINISTIC, f"{case.name}: two equal calls gave different bits")
                raise _Rejected(
                    Reason.UNWRITTEN_OUTPUT, f"{case.name}: the result depends on what its memory held before"
                )
    finally:
        backend.poison(None)
    if before != [_bits(a) for a in small]:
        raise _Rejected(Reason.INPUT_MODIFIED, f"{case.name}: an input has changed")
    assert first is not None
    return first


def _judge_case(region: Region, kernel: Kernel, run: Any, draws: Draws, number: int, setting: Setting) -> _Measured:
    """Judges one setting, drawing its values anew until they can tell a result from a constant."""
    for kind in (setting.kind, *_FALLBACK_KINDS):
        case = draws.draw(number, replace(setting, kind=kind))
        oracle = _oracle(region, case)
        stock = _stock_error(region, case, oracle)
        limits = [bound(_output_dtype(region, i), _length(region, case), stock) for i in range(len(oracle))]
        if all(_sharp(o, _output_dtype(region, i), limits[i]) for i, o in enumerate(oracle)):
            break
    else:
        raise _Rejected(Reason.NOT_JUDGED, f"{case.name}: no values tell the result from a constant")
    results = run(_arguments(region, kernel, case), case)
    worst = 0.0
    for index, (result, wanted) in enumerate(zip(results, oracle, strict=True)):
        if tuple(result.shape) != wanted.shape:
            raise _Rejected(Reason.SHAPE_MISMATCH, f"{case.name}: got {result.shape}, expected {wanted.shape}")
        stats = error(to_numpy(result), wanted, _output_dtype(region, index))
        if not stats.finite:
            raise _Rejected(Reason.NON_FINITE, f"{case.name}: NaN or inf where the reference is finite")
        if stats.worst > limits[index]:
            detail = f"{case.name}: error {stats.worst:.3g} ulp, allowed {limits[index]:.3g} (stock {stock.worst:.3g})"
            raise _Rejected(Reason.NUMERIC_MISMATCH, detail)
        worst = max(worst, stats.worst)
    return _Measured(worst, stock.worst)


def _sharp(oracle: Array, dtype: DType, limit: float) -> bool:
    """Whether the candidates that compute nothing (zeros, the reference's mean) would be caught."""
    nulls = (np.zeros_like(oracle), np.full_like(oracle, oracle.mean()))
    return oracle.size == 1 or all(error(null, oracle, dtype).worst > limit for null in nulls)


def verify(region: Region, kernel: Kernel, executable: Any, backend: Backend, seed: int | None = None) -> Verdict:
    """Judges a built kernel against the float64 oracle of its region.

    Args:
        region: what the kernel must compute.
        kernel, executable: the candidate.
        backend: runs it.
        seed: of the cases; fresh when ``None``, and recorded in the verdict.
    """
    seed = secrets.randbits(32) if seed is None else seed
    worst = stock = 0.0
    count = 0
    launch = single_launch(kernel, executable, backend)

    def run(arrays: list[mx.array], case: Case) -> list[mx.array]:
        return _runs(launch, arrays, case, backend)

    draws = Draws.start(region, kernel, seed)
    try:
        for number, setting in enumerate(draws.settings):
            measured = _judge_case(region, kernel, run, draws, number, setting)
            worst, stock, count = max(worst, measured.worst), max(stock, measured.stock), count + 1
    except _Rejected as rejected:
        return Verdict(rejected.reason.value, str(rejected), count, worst, stock, seed, kernel.name)
    except Exception as error_:  # a fault of the judge must not end the user's command
        detail = f"{type(error_).__name__}: {error_}"
        return Verdict(Reason.NOT_JUDGED.value, detail, count, worst, stock, seed, kernel.name)
    return Verdict("", "", count, worst, stock, seed, kernel.name)
