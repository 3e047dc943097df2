"""What a plugin may provide.

A plugin is a module named by an entry point of the group ``mlx_autoperfect``; it implements the hooks
below with :data:`hookimpl`. The core knows backends only through :class:`Backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pluggy

from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.dtypes import DType
from mlx_autoperfect.errors import Failure
from mlx_autoperfect.graph.types import Shape
from mlx_autoperfect.kernel.ir import Kernel

PROJECT = "mlx_autoperfect"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Slot:
    """One array of a sequence's interface: name for messages, dtype, shape, and whether it may be strided."""

    name: str
    dtype: DType
    shape: Shape
    strided: bool = False


@dataclass(frozen=True)
class Launch:
    """One kernel in a sequence; buffers are numbered inputs first, then outputs, then temporaries."""

    executable: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Append:
    """Writes the rows of buffer ``source`` into a cache: output ``output`` is input ``input`` with them at ``offset``.

    ``filled`` is the view of that output up to T positions, which later launches read by its buffer number.
    """

    source: int
    input: int
    output: int
    filled: Slot


@dataclass(frozen=True)
class SequenceSpec:
    """Kernels that run one after the other as one lazy node.

    Attributes:
        launches: in order. The views that appends make are numbered after the temporaries, in order.
        inputs, outputs, temporaries: the arrays that buffer numbers refer to.
        symbols: names of the sizes and scalars that a call supplies, in order.
    """

    launches: tuple[Launch | Append, ...]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    temporaries: tuple[Slot, ...]
    symbols: tuple[str, ...]


class Sequencer(Protocol):
    """A prepared sequence."""

    def __call__(self, inputs: list[Any], symbols: list[int]) -> list[Any]:
        """The lazy outputs. Raises ``ValueError`` when an input does not have the dtype or shape of its slot."""

    def bind(self, params: Sequence[ParamSlot], guards: Sequence[Guard]) -> Bound:
        """Fixes where the last inputs come from.

        Args:
            params: ``(owner, key)`` of each, looked up in the owning dict at every call.
            guards: ``(owner, key, expected)``: a call raises ``ValueError`` when an entry is another object.
        """


ParamSlot = tuple[Any, str]
Guard = tuple[Any, str | int, Any]
Bound = Callable[[list[Any], list[int]], list[Any]]


class Backend(Protocol):
    """Something that turns kernels into code that runs here."""

    name: str

    def status(self) -> Failure | None:
        """Why the backend cannot be used on this machine; ``None`` when it can."""

    def fingerprint(self) -> str:
        """Changes whenever a verdict reached here would no longer hold: compiler, templates, versions, CPU."""

    def render(self, kernel: Kernel) -> Source | Failure:
        """The source of a kernel."""

    def build(self, sources: Sequence[Source], progress: Callable[[str], None] | None = None) -> list[Any]:
        """Compiles and loads; an opaque executable or a :class:`Failure` per source."""

    def sequence(self, spec: SequenceSpec) -> Sequencer:
        """Prepares a sequence."""

    def poison(self, pattern: int | None) -> None:
        """From now on outputs are filled with this byte before kernels run; ``None`` stops that."""


class Hooks:
    """The hooks themselves."""

    @hookspec
    def autoperfect_backend(self) -> Backend | None:
        """A backend, or ``None`` when this platform cannot have it."""

    @hookspec
    def autoperfect_cache_types(self) -> Sequence[type]:  # type: ignore[empty-body]
        """Cache classes whose ``update_and_fetch(keys, values)`` appends and whose ``offset`` counts positions."""

    @hookspec(firstresult=True)
    def autoperfect_caches(self, model: Any) -> Sequence[Any] | None:
        """The caches that the host makes for ``model``, one per block; ``None`` when it does not know the model."""

    @hookspec
    def autoperfect_optimized(self, model: Any) -> None:
        """Called after ``model`` was patched: the place for what the host itself can do faster."""


def plugin_manager() -> pluggy.PluginManager:
    """A manager with every installed plugin loaded; one that fails to import is skipped with a warning."""
    import warnings
    from importlib.metadata import entry_points

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    for entry in entry_points(group=PROJECT):
        try:
            manager.register(entry.load(), entry.name)
        except Exception as error:  # a third party's code
            warnings.warn(f"autoperfect: plugin {entry.name!r} was not loaded: {error}", stacklevel=2)
    return manager


def backends(manager: pluggy.PluginManager) -> list[Backend]:
    """The backends of all plugins, in the order of their names."""
    found: list[Backend | None] = manager.hook.autoperfect_backend()
    return sorted((b for b in found if b is not None), key=lambda b: b.name)
