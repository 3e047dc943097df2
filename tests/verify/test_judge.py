"""The judge passes right kernels of every format and rejects wrong ones with the right code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.verify.judge import Verdict, verify
from mlx_autoperfect.verify.request import Request
from tests.models import Spec
from tests.verify.kernels import MUTATIONS, Candidate, candidate, leaf, model_regions

_DTYPES = ("float32", "float16", "bfloat16")
_GROUPS = (32, 64, 128)
# Every dtype with every width and every group, and every width with every group.
_FORMATS = [(d, (4 if (i + j) % 2 == 0 else 8, g)) for i, d in enumerate(_DTYPES) for j, g in enumerate(_GROUPS)]
LEAVES: dict[str, Callable[[], Candidate]] = {
    **{
        f"few-{dtype}-q{quant[0]}g{quant[1]}": lambda d=dtype, q=quant: leaf(d, q, False)  # type: ignore[misc]
        for dtype, quant in _FORMATS
    },
    **{f"few-{dtype}-dense": lambda d=dtype: leaf(d, None, False) for dtype in _DTYPES},  # type: ignore[misc]
    "many-float16-q4g32": lambda: leaf("float16", (4, 32), True),
    "many-float32-q8g128": lambda: leaf("float32", (8, 128), True),
    "many-bfloat16-dense": lambda: leaf("bfloat16", None, True),
}


class _Built:
    """Builds candidates all at once, the first time one is asked for."""

    def __init__(self, backend: Backend, makers: dict[str, Callable[[], Candidate]]) -> None:
        self.backend = backend
        self.candidates = {name: make() for name, make in makers.items()}
        sources = [c.source for c in self.candidates.values()]
        self.executables = dict(zip(self.candidates, backend.build(sources), strict=True))

    def verdict(self, name: str, seed: int = 1) -> Verdict:
        executable = self.executables[name]
        assert not isinstance(executable, Failure), executable
        found = self.candidates[name]
        return verify(found.region, found.kernel, executable, self.backend, seed)


@pytest.fixture(scope="module")
def leaves(cpu: Backend) -> _Built:
    return _Built(cpu, LEAVES)


@pytest.fixture(scope="module")
def mutants(cpu: Backend) -> _Built:
    return _Built(cpu, {name: mutation.wrong for name, mutation in MUTATIONS.items()})


@pytest.fixture(scope="module")
def originals(cpu: Backend) -> _Built:
    return _Built(cpu, {name: mutation.right for name, mutation in MUTATIONS.items()})


@pytest.mark.parametrize("name", LEAVES)
def test_a_right_kernel_passes(name: str, leaves: _Built) -> None:
    verdict = leaves.verdict(name)
    assert verdict.passed, verdict
    assert verdict.failure is None
    assert verdict.cases >= 3
    assert 0 < verdict.worst <= max(1.0, 4 * verdict.stock + 1)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_kernel_is_rejected(name: str, mutants: _Built) -> None:
    verdict = mutants.verdict(name)
    assert not verdict.passed, f"survived: {name}"
    assert Reason(verdict.reason) in MUTATIONS[name].reasons, verdict
    failure = verdict.failure
    assert failure is not None
    assert (failure.stage, failure.reason) == (Stage.VERIFY, Reason(verdict.reason))
    assert failure.where == verdict.name and failure.detail


@pytest.mark.parametrize("seed", range(5))
def test_no_seed_lets_a_subtle_bug_through(seed: int, mutants: _Built) -> None:
    for name in ("another eps", "another theta", "another scale", "causal mask off by one", "forgets the oldest key"):
        assert not mutants.verdict(name, seed).passed, (name, seed)


def test_what_was_mutated_was_right(originals: _Built) -> None:
    """The mutants die of their bug, not of the kernel they were made from."""
    verdicts = {name: originals.verdict(name) for name in MUTATIONS}
    assert [str(v) for v in verdicts.values() if not v.passed] == []


def test_the_same_seed_gives_the_same_verdict(leaves: _Built) -> None:
    name = "few-float16-q4g64"
    assert leaves.verdict(name, 7) == leaves.verdict(name, 7)
    assert leaves.verdict(name, 7) != leaves.verdict(name, 8)


def test_a_fresh_seed_is_recorded(cpu: Backend, leaves: _Built) -> None:
    found, executable = leaves.candidates["few-float32-dense"], leaves.executables["few-float32-dense"]
    seeds = {verify(found.region, found.kernel, executable, cpu).seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict("", "", 4, 0.5, 3.25, 123, "rms_qkv"),
        Verdict("NUMERIC_MISMATCH", "L=1 T=4 tiny: error 9 ulp", 2, 0.1, 0.2, 4294967295, "rope"),
    ],
)
def test_verdicts_round_trip_through_json(verdict: Verdict) -> None:
    import json

    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


@pytest.mark.parametrize("name", ["decode.block.rms_qkv", "prefill.block.rope", "prefill.block.attention"])
def test_requests_round_trip_through_text(name: str) -> None:
    found = candidate(model_regions(Spec())[name])
    request = Request(found.region, found.kernel, found.source)
    line = request.to_line()
    assert "\n" not in line
    again = Request.from_line(line)
    assert (again.kernel, again.source, again.region.kind) == (found.kernel, found.source, found.region.kind)
    assert again.region.graph == found.region.graph
    assert again.to_line() == line


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"name": 1}', "no json"])
def test_a_broken_request_is_refused(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Request.from_line(line)


class _Backend:
    """A backend whose kernels are Python functions of the ABI's arrays."""

    name = "fake"

    def __init__(self, run: Callable[[list[Any], list[int]], list[Any]]) -> None:
        self.run = run
        self.poisons: list[int | None] = []

    def poison(self, pattern: int | None) -> None:
        self.poisons.append(pattern)

    def sequence(self, spec: Any) -> Callable[[list[Any], list[int]], list[Any]]:
        return self.run


def _verdict(run: Callable[[list[Any], list[int]], list[Any]]) -> tuple[Verdict, _Backend]:
    found = leaf("float32", None, False)
    backend = _Backend(run)
    return verify(found.region, found.kernel, None, backend, 1), backend  # type: ignore[arg-type]


def _product(arrays: Sequence[Any], _: list[int]) -> list[Any]:
    return [arrays[0] @ arrays[1].T]


def test_the_judge_accepts_stock_itself() -> None:
    verdict, backend = _verdict(_product)
    assert verdict.passed, verdict
    assert {p for p in backend.poisons if p is not None} == {0xFF, 0x7B, 0x3C}
    assert backend.poisons[-1] is None, "poison is switched off at the end"


def test_poison_is_switched_off_after_a_crash() -> None:
    def crash(arrays: Sequence[Any], _: list[int]) -> list[Any]:
        raise RuntimeError("the kernel's own fault")

    verdict, backend = _verdict(crash)
    assert verdict.reason == Reason.NOT_JUDGED
    assert "the kernel's own fault" in verdict.detail
    assert backend.poisons[-1] is None


def _cheats() -> dict[str, tuple[Callable[..., list[Any]], set[str]]]:
    import mlx.core as mx

    state: dict[str, Any] = {}

    def remembers(arrays: Sequence[Any], symbols: list[int]) -> list[Any]:
        """The first answer for a shape, whatever the values."""
        return [state.setdefault(arrays[0].shape, _product(arrays, symbols)[0])]

    def keeps_weights(arrays: Sequence[Any], symbols: list[int]) -> list[Any]:
        return [arrays[0] @ state.setdefault("w", arrays[1]).T]

    return {
        "zeros": (lambda a, s: [mx.zeros((*a[0].shape[:-1], 43))], {"NUMERIC_MISMATCH"}),
        "another shape": (lambda a, s: [_product(a, s)[0][..., :-1]], {"SHAPE_MISMATCH"}),
        "half precision": (lambda a, s: [_product([x.astype(mx.float16) for x in a], s)[0].astype(mx.float32)],
                           {"NUMERIC_MISMATCH"}),
        "bfloat16": (lambda a, s: [_product([x.astype(mx.bfloat16) for x in a], s)[0].astype(mx.float32)],
                     {"NUMERIC_MISMATCH"}),
        "weights of the first call": (keeps_weights, {"NUMERIC_MISMATCH"}),
        "the first row everywhere": (
            lambda a, s: [mx.broadcast_to(_product(a, s)[0][:1], (a[0].shape[0], 43))], {"NUMERIC_MISMATCH"},
        ),
        "a large value is lost": (lambda a, s: _product([mx.clip(a[0], -8, 8), a[1]], s), {"NUMERIC_MISMATCH"}),
        "infinite": (lambda a, s: [_product(a, s)[0] + mx.inf], {"NON_FINITE"}),
    }  # fmt: skip


@pytest.mark.parametrize("name", _cheats())
def test_a_cheat_is_rejected(name: str) -> None:
    run, reasons = _cheats()[name]
    assert _verdict(run)[0].reason in reasons
