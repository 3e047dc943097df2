"""The guarded worker: judges kernels in a process of its own, so that a crash or a hang costs one kernel.

Run as ``python -m mlx_autoperfect.verify.worker``; requests come in on standard input, one per line,
and each is answered by one line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from mlx_autoperfect.errors import Failure, Reason
from mlx_autoperfect.hookspecs import Backend, backends, plugin_manager
from mlx_autoperfect.verify.judge import Verdict, verify
from mlx_autoperfect.verify.request import Request


def _backend(name: str) -> Backend:
    return next(b for b in backends(plugin_manager()) if b.name == name)


def judge(request: Request) -> Verdict:
    """Builds (a cache hit: the parent built it) and judges one kernel."""
    backend = _backend(request.source.backend)
    executable = backend.build([request.source])[0]
    if isinstance(executable, Failure):
        return Verdict(executable.reason.value, executable.detail, 0, 0.0, 0.0, 0, request.kernel.name)
    return verify(request.region, request.kernel, executable, backend)


def main() -> None:
    """Answers requests until standard input ends."""
    # Ctrl-C is the parent's: it ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    # What kernels or libraries print must not reach the pipe.
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            verdict = judge(Request.from_line(line))
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            verdict = Verdict(Reason.NOT_JUDGED.value, detail, 0, 0.0, 0.0, 0)
        print(json.dumps(verdict.to_json()), file=answers, flush=True)


if __name__ == "__main__":
    main()
