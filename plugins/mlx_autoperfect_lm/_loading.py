"""Wraps mlx-lm's load functions so that the model of the outermost call is optimized."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from types import FunctionType
from typing import Any

from mlx_autoperfect_lm._commands import LOADERS, LOADING_MODULE, SAVING
from mlx_autoperfect_lm._report import hide_own_frames, in_words, notice
from mlx_autoperfect_lm._switch import SWITCH

_MARK = "_mlx_autoperfect_stock"


class _Nesting(threading.local):
    """How many load functions this thread is inside of; only the outermost sees adapters and shards."""

    depth = 0


_nesting = _Nesting()


class _Progress:
    """A progress bar on standard error that appears only when there is something to wait for."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._report: Callable[[str, int, int], None] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._report is None:
            from mlx_autoperfect.cli.screen import pipeline_progress

            self._report = self._open.enter_context(pipeline_progress("autoperfect, first use"))
        self._report(stage, done, total)

    def close(self) -> None:
        self._open.close()


def optimized(model: Any) -> Any:
    """The model as ``mlx_autoperfect.optimize`` returns it, or as it was, with one line saying why."""
    try:
        from mlx_autoperfect import optimize

        with closing(_Progress()) as progress:
            return optimize(model, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # what was being compiled is of no interest to who pressed Ctrl-C
    except (Exception, SystemExit) as error:
        notice(f"{in_words(error)}; running stock mlx-lm")
    with suppress(Exception):
        from mlx_autoperfect import restore

        restore(model)
    return model


def _module_of(namespace: dict[str, Any]) -> str:
    """The name of the module whose globals these are, also when ``python -m`` runs it as ``__main__``."""
    name = str(namespace.get("__name__", ""))
    return str(getattr(namespace.get("__spec__"), "name", name)) if name == "__main__" else name


def _is_lazy(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        return bool(signature.bind_partial(*args, **kwargs).arguments.get("lazy", False))
    except TypeError:
        return True  # the stock function will refuse these arguments in its own words


def wrapped(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``stock`` with the model in its result, ``(model, ...)``, optimized if the switch is on."""
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def load(*args: Any, **kwargs: Any) -> Any:
        wanted = (
            _nesting.depth == 0
            and SWITCH.on()
            and not _is_lazy(signature, args, kwargs)
            and _module_of(sys._getframe(1).f_globals) not in SAVING
        )
        _nesting.depth += 1
        try:
            result = stock(*args, **kwargs)
            return (optimized(result[0]), *result[1:]) if wanted else result
        except BaseException:
            hide_own_frames()
            raise
        finally:
            _nesting.depth -= 1

    setattr(load, _MARK, stock)
    return load


def _rebind(replacements: dict[FunctionType, Callable[..., Any]]) -> None:
    """Replaces functions wherever a module's global names them, ``from mlx_lm import load`` for one."""
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", None)
        if type(namespace) is not dict:
            continue
        for name, value in list(namespace.items()):
            if type(value) is FunctionType and value in replacements:
                namespace[name] = replacements[value]


def attach() -> None:
    """Wraps the load functions of mlx-lm if it is imported; a second call finds nothing left to wrap."""
    utils = sys.modules.get(LOADING_MODULE)
    found = [getattr(utils, name, None) for name in LOADERS]
    stock = [function for function in found if type(function) is FunctionType and not hasattr(function, _MARK)]
    if stock:
        _rebind({function: wrapped(function) for function in stock})


def attach_if_on() -> None:
    """Attaches right after ``mlx_lm.utils`` has been imported, if something already asked for it."""
    if SWITCH.on():
        attach()
