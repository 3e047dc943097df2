"""``--autoperfect`` and ``--no-autoperfect`` in mlx-lm's argument parsers, and in nobody else's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

from mlx_autoperfect_lm._commands import ANSWERING, SAVING
from mlx_autoperfect_lm._loading import attach
from mlx_autoperfect_lm._report import in_words, notice
from mlx_autoperfect_lm._switch import SWITCH, environment

_OPTIONS = ("--autoperfect", "--no-autoperfect")
_HELP = (
    "Make the model faster on this machine with verified fused kernels; what it answers stays the same. "
    "Off unless asked for; --no-autoperfect and AUTOPERFECT=0 win."
)


class _Flag(argparse.Action):
    """Records the flag in ``SWITCH``; nothing of it reaches the Namespace, which mlx-lm saves and passes on."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if SWITCH.flag is not False:
            SWITCH.flag = not (option_string or "").startswith("--no")

    def format_usage(self) -> str:
        return " | ".join(self.option_strings)


def _act_on_flag(command: str) -> None:
    """After a command line has been parsed: attaches to the load functions, or says why not."""
    if not SWITCH.flag:
        return
    if environment() is False:
        notice("AUTOPERFECT in the environment says off, so --autoperfect has no effect; running stock mlx-lm")
    elif command in SAVING:
        notice(f"{command} trains, saves or manages weights, so --autoperfect has no effect there")
    else:
        try:
            attach()
        except Exception as error:
            notice(f"cannot attach to mlx-lm ({in_words(error)}); running stock mlx-lm")


class HostParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` with the flag; one subclass per command.

    Attributes:
        command: the command module's name, ``mlx_lm.generate`` for one.
    """

    command = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offer_flag()

    def offer_flag(self) -> None:
        """Adds the two options; commands in which they mean nothing accept them and do not list them."""
        if self.command in ANSWERING:
            self.add_argument_group("autoperfect").add_argument(*_OPTIONS, action=_Flag, help=_HELP)
        else:
            self.add_argument(*_OPTIONS, action=_Flag, help=argparse.SUPPRESS)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        SWITCH.flag = None
        parsed = super().parse_known_args(args, namespace)
        _act_on_flag(self.command)
        return parsed

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Abbreviations that mlx-lm's own options understand keep their meaning: ours yield."""
        matches = super()._get_option_tuples(option_string)
        return [match for match in matches if not isinstance(match[0], _Flag)] or matches


def _parser_for(command: str) -> type[HostParser]:
    return type("ArgumentParser", (HostParser,), {"command": command})


def equip(module: ModuleType, command: str) -> None:
    """Gives an imported command module its own view of ``argparse``, whose parser has the flag."""
    if vars(module).get("argparse") is argparse:
        view = ModuleType("argparse", argparse.__doc__)
        vars(view).update(vars(argparse))
        vars(view)["ArgumentParser"] = _parser_for(command)
        vars(module)["argparse"] = view


def equip_main(command: str) -> None:
    """Gives the flag to the parser that ``command``, run as ``__main__``, is about to make.

    That module imports ``argparse`` itself and runs to its end at once, so its first parser is caught
    as ``argparse`` makes it, and the method that catches it goes away then.
    """
    stock = argparse.ArgumentParser.__init__

    def catch(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        maker = sys._getframe(1).f_globals
        name = getattr(maker.get("__spec__"), "name", None)
        if type(self) is argparse.ArgumentParser and (maker.get("__name__"), name) == ("__main__", command):
            argparse.ArgumentParser.__init__ = stock  # type: ignore[method-assign]
            self.__class__ = _parser_for(command)
            cast(HostParser, self).offer_flag()

    argparse.ArgumentParser.__init__ = catch  # type: ignore[method-assign]
