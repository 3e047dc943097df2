"""``mlx-autoperfect run``: starts a program with autoperfect on, without any start-up hook."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import TracebackType

from mlx_autoperfect.errors import AutoperfectError

USAGE = """\
usage: mlx-autoperfect run COMMAND [ARGUMENT ...]
       mlx-autoperfect run -m MODULE [ARGUMENT ...]
       mlx-autoperfect run SCRIPT.py [ARGUMENT ...]

Runs a Python command of this environment (mlx_lm.generate, or mlx_lm generate), a module or a script,
with every model that it loads through mlx-lm made faster. AUTOPERFECT=0 and --no-autoperfect switch it off."""

_Start = Callable[[], object]


class UnknownTargetError(AutoperfectError):
    """What was asked to run does not exist."""


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _activate_hosts() -> None:
    """Calls ``activate()`` of every installed plugin that has one, and says so if there is none.

    A plugin that cannot be loaded is the core's to report: here it may not even be a host.
    """
    failures: list[str] = []
    active = 0
    for entry in entry_points(group="mlx_autoperfect"):
        try:
            activate = getattr(entry.load(), "activate", None)
            if activate is not None:
                activate()
                active += 1
        except Exception as error:
            failures.append(f" ({entry.name}: {type(error).__name__}: {error})")
    if not active:
        _say(f"autoperfect: no host plugin is usable{''.join(failures)}; running without it: reinstall mlx-autoperfect")


def _module_exists(name: str) -> bool:
    """Whether ``python -m name`` would find something to run.

    Raises whatever importing the packages above it raises, other than that they do not exist.
    """
    if not all(name.split(".")):
        return False
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return False
    except ValueError:
        return False
    return spec is not None


def _set_first_path(folder: str) -> None:
    """What the interpreter does for ``python -m`` and for a script."""
    if not sys.flags.safe_path:
        sys.path[0:1] = [folder]


def _module(name: str) -> _Start:
    def start() -> object:
        _set_first_path(os.getcwd())  # noqa: PTH109 - sys.path holds strings
        if not _module_exists(name):
            raise UnknownTargetError(
                f"there is no command, module or script named {name!r} in this environment; "
                "check the spelling, or install the package that has it here"
            )
        return runpy.run_module(name, run_name="__main__", alter_sys=True)

    return start


def _script(path: str) -> _Start:
    def start() -> object:
        if not os.access(path, os.R_OK):
            raise UnknownTargetError(f"the script {path!r} does not exist or cannot be read; check its path")
        _set_first_path(str(Path(path).resolve().parent))
        return runpy.run_path(path, run_name="__main__")

    return start


def _command(entry: EntryPoint) -> _Start:
    def start() -> object:
        sys.exit(entry.load()())

    return start


def resolve(argv: list[str]) -> tuple[_Start, list[str]]:
    """What to start and the ``sys.argv`` it shall see, from the words after ``run``.

    A path or a name ending in ``.py`` is a script; another name is an installed command if there is one,
    else a module. Nothing is imported or run yet.
    """
    name, *rest = argv
    if name == "-m" and rest:
        return _module(rest[0]), ["-m", *rest[1:]]
    if name.endswith(".py") or Path(name).name != name:
        return _script(name), argv
    for entry in entry_points(group="console_scripts", name=name):
        return _command(entry), argv
    return _module(name), argv


def _without_launcher(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame of the program itself on."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        trace = trace.tb_next
    return trace


def run(argv: list[str]) -> int:
    """Runs the program named by ``argv``, the words after ``run``, in this process.

    Returns:
        0 if it ran to its end; 1 after an uncaught exception, printed as Python prints it without the
        launcher's frames (130 for Ctrl-C); 2 if there is nothing to run, with one line that says so.

    Raises:
        SystemExit: the program's own exit, unchanged.
    """
    if not argv or argv in (["-h"], ["--help"], ["-m"]):
        print(USAGE, file=sys.stdout if argv in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv in (["-h"], ["--help"]) else 2
    start, sys.argv = resolve(argv)
    _activate_hosts()
    try:
        start()
    except SystemExit:
        raise
    except UnknownTargetError as error:
        _say(f"mlx-autoperfect run: {error}")
        return 2
    except BaseException as error:
        error.__traceback__ = _without_launcher(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0
