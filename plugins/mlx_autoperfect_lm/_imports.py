"""A finder that acts when one of mlx-lm's modules has been imported, and leaves every other alone.

With ``AUTOPERFECT=1`` in the shell every Python program loads this module, so it imports not even ``typing``,
which alone would cost 10 ms.
"""

from __future__ import annotations

import sys

from mlx_autoperfect_lm._commands import COMMANDS, LOADING_MODULE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_WATCHED = COMMANDS | {LOADING_MODULE}


def _equip(name: str, module: ModuleType | None) -> None:
    """Equips a module that has been executed, or, without one, a command that ``runpy`` is about to run.

    Raises nothing: mlx-lm must go on without us.
    """
    try:
        if name == LOADING_MODULE:
            from mlx_autoperfect_lm._loading import attach_if_on

            attach_if_on()
        else:
            from mlx_autoperfect_lm._flag import equip, equip_main

            equip_main(name) if module is None else equip(module, name)
    except Exception as error:
        from mlx_autoperfect_lm._report import in_words, notice

        notice(f"cannot hook into {name} ({in_words(error)}); running stock mlx-lm")


def _watch(name: str, loader: Any) -> None:
    """Puts two functions on this one loader instance; its type, and so its other uses, stay as they were."""
    execute, code_of = loader.exec_module, loader.get_code
    executing = False

    def exec_module(module: ModuleType) -> None:
        nonlocal executing
        executing = True
        try:
            execute(module)
        except BaseException:
            from mlx_autoperfect_lm._report import hide_own_frames

            hide_own_frames()
            raise
        finally:
            executing = False
        _equip(name, module)

    def get_code(fullname: str) -> Any:
        if not executing and name in COMMANDS:
            _equip(name, None)
        return code_of(fullname)

    loader.exec_module, loader.get_code = exec_module, get_code


class Finder:
    """A meta-path finder that lets the other finders look for the watched modules and marks what they find."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _WATCHED:
            return None
        for finder in sys.meta_path:
            look = None if finder is self else getattr(finder, "find_spec", None)
            spec = look(name, path, target) if look else None
            if spec is not None:
                try:
                    _watch(name, spec.loader)
                except AttributeError:
                    return spec  # an unusual loader: its module goes without the flag
                return spec
        return None


def install() -> None:
    """Puts the finder first, once, and equips the modules that are already imported."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    for name in sorted(_WATCHED & sys.modules.keys()):
        _equip(name, sys.modules[name])
