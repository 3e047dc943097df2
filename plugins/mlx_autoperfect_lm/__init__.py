"""The mlx-lm host: ``--autoperfect`` on mlx-lm's own commands, without a fork of mlx-lm.

How it reaches mlx-lm, which has no plugin interface:

* ``mlx_autoperfect.pth`` (``mlx_autoperfect.start`` from Python 3.15 on) lies in site-packages. Its one
  line asks whether the program is one of mlx-lm's or ``AUTOPERFECT`` is on, and only then imports this
  package. Python 3.15 has no such line: there every program imports ``_startup``, which asks the same.
* A finder waits for mlx-lm's modules. Command modules get an ``ArgumentParser`` that knows the flag.
* Once something asks for it, ``mlx_lm.utils.load``, ``sharded_load`` and ``load_model`` are wrapped, and
  ``mlx_autoperfect.optimize`` sees each model that the outermost of them returns.

Without the flag an mlx-lm command runs stock functions: of this project it imports the few small modules
here for ``--help`` and the flag, and nothing of the core. Any other program imports nothing at all.

Whatever says off wins: ``--no-autoperfect`` over all, then ``AUTOPERFECT=0``; after these the flag,
``activate()``, the launcher and ``AUTOPERFECT=1`` each switch it on. Commands that save or train weights
(convert, fuse, lora, awq, dwq, gptq, dynamic_quant, manage, share, upload) and loads with ``lazy=True``
always get the stock model. Should anything here fail, mlx-lm runs as it is and one line says why.

This file imports nothing, because the start-up hook pays for it.
"""

__all__ = ["activate"]


def activate() -> None:
    """Switches autoperfect on for every model that this process loads with mlx-lm from now on.

    Works before and after mlx-lm is imported: names already bound to its load functions are rebound in
    every module. ``AUTOPERFECT=0`` and ``--no-autoperfect`` still win. Calling it again changes nothing.
    """
    from mlx_autoperfect_lm._imports import install
    from mlx_autoperfect_lm._switch import SWITCH

    SWITCH.forced = True
    install()
