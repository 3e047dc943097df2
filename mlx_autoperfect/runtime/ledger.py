"""What was patched, so that it can be undone: a per-instance subclass swap, written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

_MARK = "_autoperfect_original"


def is_patched(module: nn.Module) -> bool:
    """Whether ``module`` carries one of our subclasses."""
    return _MARK in type(module).__dict__


@dataclass
class Ledger:
    """The patches of one model, in the order in which they were made."""

    entries: list[tuple[nn.Module, type]] = field(default_factory=list)

    def patch(self, module: nn.Module, call: Callable[..., Any]) -> None:
        """Gives ``module`` alone another ``__call__``.

        The instance gets a subclass of its own class: ``isinstance``, attributes, parameters and
        ``copy.deepcopy`` stay as they were. Patching twice is an error of ours.
        """
        assert not is_patched(module), f"{type(module).__name__} is patched already"
        original = type(module)
        swapped = type(
            original.__name__, (original,), {"__call__": call, _MARK: original, "__module__": original.__module__}
        )
        swapped.__qualname__ = original.__qualname__
        self.entries.append((module, original))
        module.__class__ = swapped

    def restore(self) -> int:
        """Undoes every patch, last first; returns how many there were."""
        count = 0
        while self.entries:
            module, original = self.entries.pop()
            module.__class__ = original
            count += 1
        return count


def original_class(module: nn.Module) -> type[Any]:
    """The class that the module has without us."""
    cls: type[Any] = type(module).__dict__.get(_MARK, type(module))
    return cls


def strip(model: nn.Module) -> int:
    """Takes our subclasses off a model that no ledger knows: a copy of a patched one. Returns how many there were."""
    patched = [module for module in model.modules() if is_patched(module)]
    for module in patched:
        module.__class__ = original_class(module)
    return len(patched)
