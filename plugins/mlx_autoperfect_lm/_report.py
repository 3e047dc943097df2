"""What a person sees of the host: single lines on stderr, and tracebacks without the host's frames."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_OWN = str(Path(__file__).parent) + os.sep
_IMPORTLIB = "<frozen importlib."


def notice(text: str) -> None:
    """Writes one line to stderr; line breaks in ``text`` become blanks."""
    if sys.stderr is not None:
        print("autoperfect:", " ".join(text.split()), file=sys.stderr)


def in_words(error: BaseException) -> str:
    """One phrase for an exception: its sentence if it is one of ours, else its type as well."""
    text = str(error).strip().rstrip(".")
    errors = sys.modules.get("mlx_autoperfect.errors")
    own = getattr(errors, "AutoperfectError", None)
    if own is not None and isinstance(error, own) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _entries(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback as it would be without the host: relinked in place, and its new first entry.

    A host frame splits the importlib frames that Python would have left out, so these go too.
    """
    entries = list(_entries(trace))
    names = [entry.tb_frame.f_code.co_filename for entry in entries]
    if not any(name.startswith(_OWN) for name in names):
        return trace
    kept = [entry for entry, name in zip(entries, names, strict=True) if not name.startswith((_OWN, _IMPORTLIB))]
    for entry, following in zip(kept, [*kept[1:], None], strict=True):
        entry.tb_next = following
    return kept[0] if kept else trace


def _clean(error: BaseException | None) -> None:
    """Cleans ``error`` and every exception that led to it."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.__traceback__ = without_own_frames(link.__traceback__)
        pending += [link.__cause__, link.__context__]


class _Hooks:
    """The two hooks that Python calls for an uncaught exception, put in front of the present ones."""

    def __init__(self) -> None:
        self.main = sys.excepthook
        self.thread = threading.excepthook

    def in_main(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _clean(error)
        self.main(kind, error, error.__traceback__)

    def in_thread(self, args: threading.ExceptHookArgs) -> None:
        _clean(args.exc_value)
        trace = None if args.exc_value is None else args.exc_value.__traceback__
        self.thread(threading.ExceptHookArgs((args.exc_type, args.exc_value, trace, args.thread)))


_installed: list[_Hooks] = []


def hide_own_frames() -> None:
    """From now on uncaught exceptions are printed as if the host were not there.

    Called when one of mlx-lm's own exceptions passes through a host function, never before. A program
    that catches the exception and formats it itself, as mlx-lm's server does for its log, shows one frame.
    """
    if _installed:
        return
    hooks = _Hooks()
    _installed.append(hooks)
    sys.excepthook = hooks.in_main
    threading.excepthook = hooks.in_thread
