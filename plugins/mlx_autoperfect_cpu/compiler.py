"""Runs compilers as child processes that end with a time limit or when the build is cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """How one compiler ended.

    Attributes:
        status: its exit status; ``None`` when it ran past its time limit.
        log: what it printed to standard error.
    """

    status: int | None
    log: str


class Cancelled(Exception):
    """The build was interrupted; raised in the worker threads, never seen by a caller."""


class CompilerRuns:
    """The compilers of one build. Each has a process group of its own, so that ``cancel`` reaches
    the programs that a compiler driver starts, and Ctrl-C in a terminal is handled by us alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[str]] = set()
        self.cancelled = False

    def run(self, command: Sequence[str], folder: Path, seconds: float) -> Finished:
        """Runs ``command`` in ``folder``, which also takes the compiler's own temporary files.

        Raises:
            Cancelled: ``cancel`` was called before or during the run.
            OSError: the program cannot be started.
        """
        with self._lock:
            if self.cancelled:
                raise Cancelled
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._live.add(process)
        try:
            log = process.communicate(timeout=seconds)[1]
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            _kill(process)
            log, status = process.communicate()[1], None
        finally:
            with self._lock:
                self._live.discard(process)
        if self.cancelled:
            raise Cancelled
        return Finished(status, log)

    def cancel(self) -> None:
        """Ends every compiler of this build and lets no new one start."""
        with self._lock:
            self.cancelled = True
            for process in self._live:
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
