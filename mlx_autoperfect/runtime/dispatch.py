"""The patched forwards: cheap guards, then a prepared forward or the original one.

Nothing here may raise on its own account, wait for the device, or read the environment. A guard that
does not hold means: this call runs as mlx-lm wrote it. A kernel sequence that refuses its inputs or
fails is dropped for good, said once, and the call is answered by the original.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import local
from typing import Any

import mlx.nn as nn

from mlx_autoperfect.capture.model import BlockCall, CacheArgument
from mlx_autoperfect.kernel.ir import MatVec
from mlx_autoperfect.runtime.ledger import original_class
from mlx_autoperfect.runtime.stages import Forward

LOG = logging.getLogger("mlx_autoperfect")

_switch = local()


def suspended() -> bool:
    """Whether this thread is inside ``mlx_autoperfect.disabled()``."""
    return bool(getattr(_switch, "depth", 0))


class disabled:
    """While open, patched models run as mlx-lm wrote them, in this thread."""

    def __enter__(self) -> None:
        _switch.depth = getattr(_switch, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _switch.depth -= 1


@dataclass
class Forwards:
    """The prepared forwards of one module, by number of rows; a missing one means: run the original.

    Attributes:
        name: path of the module, for the log.
        one: a single row.
        few: 2 to 16 rows.
        many: more rows.
        in_place: a single row, writing to caches that have room.
    """

    name: str
    one: Forward | None = None
    few: Forward | None = None
    many: Forward | None = None
    in_place: Forward | None = None
    dropped: list[str] = field(default_factory=list)

    def select(self, rows: int) -> Forward | None:
        if rows == 1:
            return self.one
        return self.few if rows <= MatVec.max_rows else self.many

    def drop(self, forward: Forward, error: Exception) -> None:
        """Never uses ``forward`` again."""
        for kind in ("one", "few", "many", "in_place"):
            if getattr(self, kind) is forward:
                setattr(self, kind, None)
        self.dropped.append(str(error))
        LOG.warning("autoperfect: %s runs on stock MLX from now on: %s", self.name, error)


def _matches(call: BlockCall, args: Sequence[Any], kwargs: dict[str, Any], cache_types: frozenset[type]) -> Any:
    """The cache, when a block is called as it was captured; else ``None``."""
    if len(args) != len(call.args) or len(kwargs) != len(call.kwargs):
        return None
    cache: Any = None
    pairs = [*zip(call.args, args, strict=True), *((want, kwargs.get(key)) for key, want in call.kwargs)]
    for want, got in pairs:
        if isinstance(want, CacheArgument):
            if type(got) not in cache_types or (cache is not None and got is not cache):
                return None
            cache = got
        elif type(got) is not type(want) or got != want:
            return None
    return cache


class BlockRunner:
    """Runs one transformer block: a prepared forward when the guards hold, else the block itself.

    Args:
        block: the module.
        forwards: what is prepared for it.
        calls: how the root calls it, for one row and for several.
        cache_types: cache classes whose updates the forwards reproduce.
    """

    def __init__(
        self, block: nn.Module, forwards: Forwards, calls: tuple[BlockCall, BlockCall], cache_types: frozenset[type]
    ) -> None:
        self.block = block
        self.forwards = forwards
        self.calls = calls
        self.cache_types = cache_types
        self.dtype = calls[0].dtype
        self.original: Callable[..., Any] = original_class(block).__call__

    def run(self, h: Any, cache: Any) -> Any:
        """The block on ``h[1,L,D]`` with a plain cache; guards are the caller's."""
        rows = h.shape[1]
        forward = self.forwards.select(rows)
        if forward is None:
            args, kwargs = self.calls[rows > 1].bind(cache)
            return self.original(self.block, h, *args, **kwargs)
        offset = cache.offset
        try:
            return forward(h, [rows, offset, offset + rows, 0], (cache,))
        except Exception as error:  # the user's generation goes on, whatever happened
            self.forwards.drop(forward, error)
            # Rows appended before the failure are behind the offset again, and will be overwritten.
            cache.offset = offset
            args, kwargs = self.calls[rows > 1].bind(cache)
            return self.original(self.block, h, *args, **kwargs)

    def call(self) -> Callable[..., Any]:
        """The patched ``__call__``."""
        runner = self

        def __call__(self: nn.Module, h: Any, *args: Any, **kwargs: Any) -> Any:
            shape = h.shape
            # A copy of the module has our class, but what is prepared belongs to the module itself.
            if (
                self is runner.block
                and len(shape) == 3
                and shape[0] == 1
                and h.dtype == runner.dtype
                and not self.training
                and not suspended()
            ):
                cache = _matches(runner.calls[shape[1] > 1], args, kwargs, runner.cache_types)
                if cache is not None:
                    return runner.run(h, cache)
            return runner.original(self, h, *args, **kwargs)

        return __call__


class RootRunner:
    """Runs the whole model: embedding, blocks and head, when it is called with tokens and plain caches."""

    def __init__(self, model: nn.Module, forwards: Forwards, blocks: int, cache_types: frozenset[type]) -> None:
        self.forwards = forwards
        self.blocks = blocks
        self.cache_types = cache_types
        self.model = model
        self.original: Callable[..., Any] = original_class(model).__call__

    def _plain(self, caches: Any) -> bool:
        return (
            isinstance(caches, list)
            and len(caches) == self.blocks
            and all(type(cache) in self.cache_types for cache in caches)
        )

    def _room(self, caches: list[Any]) -> int:
        """Positions that every cache has buffers for; 0 when they differ or there are none yet."""
        room = 0
        for cache in caches:
            keys, values = cache.keys, cache.values
            if keys is None or values is None:
                return 0
            size = keys.shape[2]
            if values.shape[2] != size or room not in (0, size):
                return 0
            room = size
        return room

    def call(self) -> Callable[..., Any]:
        """The patched ``__call__``."""
        runner = self

        def __call__(self: nn.Module, tokens: Any, *args: Any, **kwargs: Any) -> Any:
            caches = kwargs["cache"] if len(kwargs) == 1 and not args and "cache" in kwargs else None
            shape = tokens.shape
            if (
                self is runner.model
                and caches is not None
                and len(shape) == 2
                and shape[0] == 1
                and shape[1] > 0
                and not self.training
                and not suspended()
                and runner._plain(caches)
            ):
                rows, offset = shape[1], caches[0].offset
                room = runner._room(caches) if rows == 1 and runner.forwards.in_place is not None else 0
                forward = runner.forwards.in_place if room > offset else runner.forwards.select(rows)
                offsets = [cache.offset for cache in caches]
                if forward is not None and offsets.count(offset) == len(offsets):
                    try:
                        return forward(tokens, [rows, offset, offset + rows, room], caches)
                    except Exception as error:  # as in BlockRunner.run
                        runner.forwards.drop(forward, error)
                        for cache, before in zip(caches, offsets, strict=True):
                            cache.offset = before
            return runner.original(self, tokens, *args, **kwargs)

        return __call__


class LeafRunner:
    """Runs one linear layer on any batch: rows are flattened, weights are the module's own."""

    def __init__(self, module: nn.Module, forwards: Forwards, width: int, dtype: Any) -> None:
        self.module = module
        self.forwards = forwards
        self.width = width
        self.dtype = dtype
        self.original: Callable[..., Any] = original_class(module).__call__

    def call(self) -> Callable[..., Any]:
        """The patched ``__call__``."""
        runner = self

        def __call__(self: nn.Module, x: Any) -> Any:
            guards = self is runner.module and x.dtype == runner.dtype and x.size > 0 and not self.training
            if not guards or suspended():
                return runner.original(self, x)
            rows = x.size // runner.width
            forward = runner.forwards.select(rows)
            if forward is None:
                return runner.original(self, x)
            try:
                y = forward(x.reshape(rows, runner.width), [rows, 0, rows, 0], None)
            except Exception as error:  # as in BlockRunner.run
                runner.forwards.drop(forward, error)
                return runner.original(self, x)
            return y.reshape(*x.shape[:-1], y.shape[-1])

        return __call__
