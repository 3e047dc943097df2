"""Judging many kernels: a few workers, each watched; what kills or stalls one is a verdict."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mlx_autoperfect.device import usable_cores
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.verify.judge import Verdict
from mlx_autoperfect.verify.request import Request

_SECONDS_PER_KERNEL = 120.0
# A worker needs a core; more than a few also need memory for float64 weights.
_MOST_WORKERS = 4


class _Worker:
    """One worker process and the thread that reads its answers."""

    def __init__(self) -> None:
        environment = os.environ | {"AUTOPERFECT": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlx_autoperfect.verify.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def ask(self, request: Request) -> Verdict:
        """The verdict; CRASHED or TIMED_OUT when the worker did not live to tell."""
        name = request.kernel.name
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(request.to_line() + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=_SECONDS_PER_KERNEL)
        except queue.Empty:
            detail = f"no verdict within {_SECONDS_PER_KERNEL:g} s"
            return Verdict(Reason.TIMED_OUT.value, detail, 0, 0.0, 0.0, 0, name)
        except OSError:
            line = ""
        if not line:
            status = self.process.wait()
            return Verdict(Reason.CRASHED.value, f"the worker ended with status {status}", 0, 0.0, 0.0, 0, name)
        data: dict[str, Any] = json.loads(line)
        return Verdict.from_json(data)

    @property
    def usable(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.wait()


def judge_all(requests: Sequence[Request], done: Callable[[int, Verdict], None], workers: int | None = None) -> None:
    """Judges every request in worker processes.

    Args:
        requests: in the order in which they should be taken.
        done: called from this thread with the index of a request and its verdict, as they come.
        workers: how many processes; one per usable core, at most four, when ``None``.
    """
    count = min(workers or usable_cores(), _MOST_WORKERS, len(requests))
    pending: queue.Queue[int] = queue.Queue()
    for index in range(len(requests)):
        pending.put(index)
    results: queue.Queue[tuple[int, Verdict]] = queue.Queue()
    stop = threading.Event()
    alive: list[_Worker] = []

    def serve() -> None:
        worker: _Worker | None = None
        while not stop.is_set():
            try:
                index = pending.get_nowait()
            except queue.Empty:
                break
            try:
                if worker is None or not worker.usable:
                    worker = _Worker()
                    alive.append(worker)
                verdict = worker.ask(requests[index])
            except Exception as error:  # no process to be had, a line that is no JSON
                name = requests[index].kernel.name
                verdict = Verdict(Reason.NOT_JUDGED.value, f"{type(error).__name__}: {error}", 0, 0.0, 0.0, 0, name)
            if verdict.reason in (Reason.TIMED_OUT, Reason.CRASHED) and worker is not None:
                worker.close()
            results.put((index, verdict))

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for _ in requests:
            done(*results.get())
    finally:
        stop.set()
        for worker in alive:
            worker.close()
