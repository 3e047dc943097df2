"""What the interpreter imports at start-up, and only if the gate in ``mlx_autoperfect.pth`` opens."""

import os
import sys

_OFF = ("", "0", "off", "false", "no")


def gate() -> bool:
    """Whether this process is mlx-lm's or asks for autoperfect; the ``.pth`` line computes the same."""
    if os.environ.get("AUTOPERFECT", "").strip().lower() not in _OFF:
        return True
    # sys.argv[0] is "-m" this early; the module's name is still in orig_argv, as far from its end.
    arguments = getattr(sys, "argv", None) or [""]
    program = "".join(sys.orig_argv[-len(arguments) :][:1])
    return os.path.basename(program).removeprefix("-m").startswith("mlx_lm")  # noqa: PTH119 - no pathlib here


def init() -> None:
    """Installs the import finder when the gate is open. Raises nothing: it runs in every program."""
    try:
        if gate():
            from mlx_autoperfect_lm._imports import install

            install()
    except Exception:
        return  # a damaged install must leave Python and mlx-lm as they are
