"""Verdicts are kept: a second start verifies nothing, damage costs one verification, a bad disk one warning."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_autoperfect.api import optimize, state_of
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.settings import Settings
from mlx_autoperfect.store.verdicts import VerdictStore
from mlx_autoperfect.verify.judge import Verdict
from tests.models import build
from tests.pipeline.e2e import LLAMA

GOOD = Verdict("", "", 4, 0.5, 3.25, 123, "rms_qkv")
BAD = Verdict("NUMERIC_MISMATCH", "error 9 ulp", 1, 9.0, 1.0, 7, "rope")
ID = "ab" + "0" * 14


def _file(root: Path, identity: str = ID) -> Path:
    return root / "verdicts" / identity[:2] / f"{identity}.json"


@pytest.mark.parametrize("verdict", [GOOD, BAD])
def test_a_verdict_is_found_again(verdict: Verdict, tmp_path: Path) -> None:
    VerdictStore(tmp_path).save(ID, verdict)
    assert VerdictStore(tmp_path).find(ID) == verdict
    assert VerdictStore(tmp_path).find("cd" + "0" * 14) is None


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def edit(text: bytes) -> bytes:
        data = json.loads(text)
        changed = change(data)
        return json.dumps(data if changed is None else changed).encode()

    return edit


_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "not JSON": lambda text: b"\x00\xff" + text,
    "not UTF-8": lambda text: text.replace(b"rms", b"\xff\xfe\xfd"),
    "a list": lambda text: b"[]",
    "a number": lambda text: b"3",
    "null": lambda text: b"null",
    "no verdict": _edit(lambda d: d.pop("verdict") and None),
    "a verdict that is text": _edit(lambda d: d.update(verdict="PASSED")),
    "a verdict with another field": _edit(lambda d: d["verdict"].update(trust="me")),
    "a verdict without its reason": _edit(lambda d: d["verdict"].pop("reason") and None),
    "another judge": _edit(lambda d: d.update(harness=d["harness"] - 1)),
    "a later judge": _edit(lambda d: d.update(harness=d["harness"] + 1)),
    "another kernel's": _edit(lambda d: d.update(identity="ab" + "1" * 14)),
    "a reason that is no code": _edit(lambda d: d["verdict"].update(reason="BECAUSE")),
    "a reason that is null": _edit(lambda d: d["verdict"].update(reason=None)),
}


@pytest.mark.parametrize("name", _DAMAGE)
def test_a_damaged_record_is_no_record(name: str, tmp_path: Path) -> None:
    VerdictStore(tmp_path).save(ID, GOOD)
    path = _file(tmp_path)
    path.write_bytes(_DAMAGE[name](path.read_bytes()))
    assert VerdictStore(tmp_path).find(ID) is None
    VerdictStore(tmp_path).save(ID, BAD)
    assert VerdictStore(tmp_path).find(ID) == BAD


def test_a_folder_in_the_way_is_no_record(tmp_path: Path) -> None:
    _file(tmp_path).mkdir(parents=True)
    assert VerdictStore(tmp_path).find(ID) is None


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        VerdictStore(tmp_path).save(ID, GOOD)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_many_writers_at_once(tmp_path: Path) -> None:
    def write(number: int) -> None:
        store = VerdictStore(tmp_path)
        for _ in range(40):
            store.save(ID, GOOD if number % 2 else BAD)
            assert VerdictStore(tmp_path).find(ID) in (GOOD, BAD)

    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            write(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder in which nothing can be made, for root as well: its place is taken by a file."""
    (tmp_path / "verdicts").write_text("in the way")
    return tmp_path


def test_an_unwritable_folder_is_said_once(unwritable: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = VerdictStore(unwritable)
    with caplog.at_level(logging.WARNING, "mlx_autoperfect"):
        store.save(ID, GOOD)
        store.save("cd" + "0" * 14, BAD)
    (record,) = caplog.records
    assert "CACHE_UNWRITABLE" in record.getMessage() and str(unwritable) in record.getMessage()
    assert store.find(ID) == GOOD, "it lasts as long as the process"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o555)
    store = VerdictStore(tmp_path)
    store.save(ID, GOOD)
    assert len(caplog.records) == 1
    assert store.find(ID) == GOOD


class _Judge:
    """Counts what is judged, and passes it without looking."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    def __call__(self, requests: Sequence[Any], done: Callable[[int, Verdict], None], *_: Any) -> None:
        for index, request in enumerate(requests):
            self.judged.append(request.kernel.content_hash)
            done(index, Verdict("", "", 1, 0.1, 0.2, 1, request.kernel.name))


@pytest.fixture
def judge(cpu: Backend, monkeypatch: pytest.MonkeyPatch) -> _Judge:
    found = _Judge()
    monkeypatch.setattr("mlx_autoperfect.pipeline.judge_all", found)
    return found


def _start(folder: Path) -> Any:
    model = build(LLAMA)
    optimize(model, settings=Settings(cache_dir=folder))
    state = state_of(model)
    assert state is not None
    return state.analysis


def test_a_second_start_verifies_nothing(judge: _Judge, tmp_path: Path) -> None:
    first = _start(tmp_path)
    count = len(judge.judged)
    assert count == len(first.outcomes) == len(set(judge.judged)) > 20
    assert not any(outcome.stored for outcome in first.outcomes.values())
    second = _start(tmp_path)
    assert len(judge.judged) == count
    assert all(outcome.stored for outcome in second.outcomes.values())
    assert {k: o.verdict for k, o in first.outcomes.items()} == {k: o.verdict for k, o in second.outcomes.items()}


def test_what_was_rejected_stays_rejected(judge: _Judge, tmp_path: Path) -> None:
    first = _start(tmp_path)
    record = sorted((tmp_path / "verdicts").rglob("*.json"))[0]
    data = json.loads(record.read_text())
    data["verdict"] |= {"reason": "NUMERIC_MISMATCH", "detail": "error 9 ulp"}
    record.write_text(json.dumps(data))
    count = len(judge.judged)
    second = _start(tmp_path)
    assert len(judge.judged) == count
    rejected = [o for o in second.outcomes.values() if o.failure is not None]
    assert [str(o.failure.reason) for o in rejected if o.failure] == ["NUMERIC_MISMATCH"]
    assert rejected[0].proven is None
    assert len(first.outcomes) == len(second.outcomes)


def test_damage_costs_one_verification(judge: _Judge, tmp_path: Path) -> None:
    _start(tmp_path)
    records = sorted((tmp_path / "verdicts").rglob("*.json"))
    records[0].write_bytes(b"")
    records[1].write_text("{}")
    records[2].unlink()
    count = len(judge.judged)
    analysis = _start(tmp_path)
    assert len(judge.judged) == count + 3
    assert all(outcome.proven is not None for outcome in analysis.outcomes.values())
    assert len(judge.judged) == count + 3
    _start(tmp_path)
    assert len(judge.judged) == count + 3


def test_another_compiler_or_template_is_verified_again(
    judge: _Judge, tmp_path: Path, cpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(tmp_path)
    count = len(judge.judged)
    monkeypatch.setattr(type(cpu), "fingerprint", lambda self: "another machine")
    _start(tmp_path)
    assert len(judge.judged) == 2 * count


def test_an_unwritable_cache_costs_a_verification_per_start(
    judge: _Judge, unwritable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mlx_autoperfect"):
        analysis = _start(unwritable)
    assert all(outcome.proven is not None for outcome in analysis.outcomes.values())
    assert len([r for r in caplog.records if "CACHE_UNWRITABLE" in r.getMessage()]) == 1


def test_ctrl_c_while_verifying_keeps_what_was_judged(
    cpu: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = _Judge()

    def interrupted(requests: Sequence[Any], done: Callable[[int, Verdict], None], *rest: Any) -> None:
        judge(requests[:5], done, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_autoperfect.pipeline.judge_all", interrupted)
    model = build(LLAMA)
    with pytest.raises(KeyboardInterrupt):
        optimize(model, settings=Settings(cache_dir=tmp_path))
    assert state_of(model) is None
    assert not any("_autoperfect_original" in vars(type(m)) for m in model.modules())
    monkeypatch.setattr("mlx_autoperfect.pipeline.judge_all", judge)
    count = len(judge.judged)
    analysis = _start(tmp_path)
    assert count == 5
    assert len(judge.judged) == len(analysis.outcomes)
