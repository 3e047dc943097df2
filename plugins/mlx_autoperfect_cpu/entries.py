"""The files of the compile cache.

An entry is a binary ``<root>/cpu/<2 digits>/<key><suffix>`` and a record ``.json`` of its size and SHA-256. Both appear
by renaming, the record last; an entry whose record is missing or does not match counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mlx_autoperfect_cpu.compiler import Cancelled, CompilerRuns


def entry_path(root: Path, key: str, suffix: str) -> Path:
    """Where the binary with this key is."""
    return root / "cpu" / key[:2] / f"{key}{suffix}"


def record_path(entry: Path) -> Path:
    """Where the record of an entry is."""
    return entry.with_suffix(".json")


def is_valid(entry: Path) -> bool:
    """Whether the entry is complete: its record exists and matches the bytes."""
    try:
        record = json.loads(record_path(entry).read_bytes())
        content = entry.read_bytes()
        return bool(record["size"] == len(content) and record["sha256"] == hashlib.sha256(content).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish(binary: Path, entry: Path) -> None:
    """Moves a finished binary, made on the same file system, to its place in the cache."""
    content = binary.read_bytes()
    record = binary.with_suffix(".json")
    record.write_text(json.dumps({"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}))
    binary.replace(entry)
    record.replace(record_path(entry))


@contextmanager
def locked(root: Path, key: str, runs: CompilerRuns, seconds: float) -> Iterator[None]:
    """Holds the key's lock, or goes on without it after ``seconds``: renaming is atomic in any case.

    Raises:
        Cancelled: the build was interrupted while it waited.
        OSError: the lock file cannot be written.
    """
    path = root / "cpu" / "locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if runs.cancelled:
            raise Cancelled
        with suppress(Timeout):
            lock.acquire(timeout=0.1)
            break
    try:
        yield
    finally:
        lock.release()
