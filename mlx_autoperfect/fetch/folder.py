"""Model folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from filelock import FileLock

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.jsonfile import write_json

RECORD = "autoperfect_fetch.json"
FORMAT = 1


@dataclass(frozen=True)
class Source:
    """What a folder was made from: a name for people, and the SHA-256 of the GGUF."""

    name: str
    sha256: str
    licence: str = ""


class State(Enum):
    """What stands at a target path."""

    ABSENT = "absent"
    CURRENT = "current"
    STALE = "stale"
    OTHER = "other"
    FOREIGN = "foreign"


def folder_state(target: Path, source: Source) -> State:
    """Compares a folder with what a fetch would write.

    ABSENT: nothing, or an empty folder. CURRENT: the same model, every file of the recorded size.
    STALE: the same model, but damaged or written by an older version. OTHER: another fetched
    model. FOREIGN: anything that fetch did not write.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return State.ABSENT
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
        sha256, files, version = record["sha256"], dict(record["files"]), record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return State.FOREIGN
    if sha256 != source.sha256:
        return State.OTHER
    whole = all((target / name).is_file() and (target / name).stat().st_size == size for name, size in files.items())
    return State.CURRENT if whole and version == FORMAT else State.STALE


def check_replaceable(target: Path, state: State, force: bool) -> None:
    """Refuses to write over what is not ours to replace.

    Raises:
        ModelError: the folder is FOREIGN, or OTHER and ``force`` is not given.
    """
    if state is State.FOREIGN:
        raise ModelError(f"{target} exists and was not written by fetch, so it is left alone; choose another --output")
    if state is State.OTHER and not force:
        raise ModelError(f"{target} holds another fetched model; pass --force to replace it, or another --output")


@contextmanager
def lock_target(target: Path, cache_dir: Path) -> Iterator[None]:
    """Keeps other processes from writing the same folder; they wait."""
    locks = cache_dir / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    with FileLock(locks / f"fetch-{name}.lock"):
        yield


@contextmanager
def stage(target: Path) -> Iterator[Path]:
    """A scratch folder beside ``target``, on the same disk; it is gone at the end, whatever happens.

    What a killed process left behind is removed first, so call this under ``lock_target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = target.parent / f".{target.name}.{os.getpid()}.partial"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(made: Path, target: Path, source: Source) -> None:
    """Records what ``made`` holds and moves it to ``target``, replacing what is there.

    ``made`` must lie in the folder that ``stage(target)`` gave.
    """
    files = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
    licence = {"licence": source.licence} if source.licence else {}
    record = {"format": FORMAT, "source": source.name, **licence, "sha256": source.sha256, "files": files}
    write_json(made / RECORD, record)
    replaced = made.with_name("replaced")
    if target.exists():
        target.rename(replaced)
    try:
        made.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
