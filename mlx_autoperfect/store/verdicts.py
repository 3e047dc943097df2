"""Verdicts reached on this machine, one small JSON file each: a second start verifies nothing."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mlx_autoperfect.errors import Reason
from mlx_autoperfect.verify.judge import HARNESS, Verdict

LOG = logging.getLogger("mlx_autoperfect")


class VerdictStore:
    """Reads and writes verdicts by identity. Atomic, shared by processes; what cannot be read is absent.

    Args:
        root: folder of the cache. When it cannot be written, verdicts last as long as the process.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "verdicts"
        self._memory: dict[str, Verdict] = {}
        self._writable = True

    def _path(self, identity: str) -> Path:
        return self._root / identity[:2] / f"{identity}.json"

    def find(self, identity: str) -> Verdict | None:
        """The verdict, or ``None`` when there is none, it is damaged, or an older judge reached it."""
        if identity in self._memory:
            return self._memory[identity]
        try:
            data = json.loads(self._path(identity).read_bytes())
            if data["harness"] != HARNESS or data["identity"] != identity:
                return None
            return Verdict.from_json(data["verdict"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, identity: str, verdict: Verdict) -> None:
        """Records a verdict; a disk that refuses is said once and costs only the next start's time."""
        self._memory[identity] = verdict
        if not self._writable:
            return
        path = self._path(identity)
        text = json.dumps({"harness": HARNESS, "identity": identity, "verdict": verdict.to_json()}, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".verdict-")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(text)
                Path(name).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            self._writable = False
            LOG.warning(
                "autoperfect: %s: verdicts cannot be stored in %s (%s); kernels are verified again at every start",
                Reason.CACHE_UNWRITABLE, self._root, error.strerror or error,
            )  # fmt: skip
