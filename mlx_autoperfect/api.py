"""``optimize``, ``restore``, ``explain``, ``disabled``: the core's public functions."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from mlx_autoperfect.errors import Failure, Reason, Stage, UnavailableError
from mlx_autoperfect.graph.types import ArrayType
from mlx_autoperfect.hookspecs import Backend, backends, plugin_manager
from mlx_autoperfect.pipeline import ONE, Analysis, Pipeline, Progress, plans
from mlx_autoperfect.runtime.assemble import Plan
from mlx_autoperfect.runtime.dispatch import BlockRunner, Forwards, LeafRunner, RootRunner, disabled
from mlx_autoperfect.runtime.functions import register_logsumexp
from mlx_autoperfect.runtime.ledger import Ledger, original_class, strip
from mlx_autoperfect.settings import Settings
from mlx_autoperfect.store.verdicts import VerdictStore

__all__ = ["Optimized", "analyze", "choose_backend", "disabled", "explain", "optimize", "restore", "state_of"]

LOG = logging.getLogger("mlx_autoperfect")


@dataclass
class Optimized:
    """What ``optimize`` did to a model.

    Attributes:
        ledger: the patches, so that ``restore`` can undo them.
        analysis: what was found out.
        backend: what runs the kernels.
        forwards: the prepared forwards, by module path.
    """

    ledger: Ledger
    analysis: Analysis
    backend: Backend
    forwards: dict[str, Forwards]

    def __deepcopy__(self, memo: object) -> None:
        """A copy of a model is not optimized: what was prepared belongs to the original."""


_STATE = "_autoperfect"


def state_of(model: nn.Module) -> Optimized | None:
    """What was done to ``model``, if anything."""
    state: Optimized | None = vars(model).get(_STATE)
    return state


def choose_backend(settings: Settings, manager: Any) -> Backend:
    """The backend that the settings name, or the first that works here.

    Raises:
        UnavailableError: none works; the reason is that of the first.
    """
    found = backends(manager)
    named = [b for b in found if b.name == settings.backend] if settings.backend else found
    if not named:
        names = ", ".join(b.name for b in found) or "none"
        wanted = f" named {settings.backend!r}" if settings.backend else ""
        detail = f"there is no backend{wanted}; installed: {names}"
        raise UnavailableError(Failure(Stage.SETUP, Reason.NO_BACKEND, detail))
    failures = []
    for backend in named:
        failure = backend.status()
        if failure is None:
            return backend
        failures.append(failure)
    raise UnavailableError(failures[0])


def analyze(
    model: nn.Module, settings: Settings | None = None, progress: Progress | None = None
) -> tuple[Analysis, Backend, frozenset[type]]:
    """Runs the whole pipeline on ``model`` without patching it.

    Raises:
        SettingsError: a variable has a value that cannot be used.
        UnavailableError: no backend works on this machine.
    """
    settings = settings or Settings.from_env()
    manager = plugin_manager()
    backend = choose_backend(settings, manager)
    caches = manager.hook.autoperfect_caches(model=model)
    types = frozenset(t for group in manager.hook.autoperfect_cache_types() for t in group)
    pipeline = Pipeline(
        backend, VerdictStore(settings.cache_dir), caches, types, settings.fuel,
        progress or (lambda stage, done, total: None),
    )  # fmt: skip
    return pipeline.run(model), backend, types


def optimize(model: nn.Module, *, settings: Settings | None = None, progress: Progress | None = None) -> nn.Module:
    """Makes ``model`` faster in place: proven kernels behind guards, stock MLX for everything else.

    Idempotent; parameters, their names and their values are not touched. What cannot be made faster
    stays as it is, with a reason that ``explain`` prints.

    Args:
        model: an mlx-lm model, weights loaded.
        settings: read from the environment when ``None``.
        progress: called with ``(stage, done, total)``.

    Returns:
        ``model``.

    Raises:
        SettingsError: a variable has a value that cannot be used.
        UnavailableError: no backend works on this machine; ``failure`` says why.
    """
    if state_of(model) is not None:
        return model
    settings = settings or Settings.from_env()
    analysis, backend, cache_types = analyze(model, settings, progress)
    if settings.debug:
        from mlx_autoperfect.report import debug_text

        print(debug_text(analysis, settings.debug), end="", file=sys.stderr)
    ledger = Ledger()
    try:
        forwards = _patch(model, analysis, backend, cache_types, ledger)
    except BaseException:
        ledger.restore()
        raise
    plugin_manager().hook.autoperfect_optimized(model=model)
    # Kept on the model, so that both go together; not through setattr, which has views on what a module may hold.
    vars(model)[_STATE] = Optimized(ledger, analysis, backend, forwards)
    return model


def _patch(
    model: nn.Module, analysis: Analysis, backend: Backend, cache_types: frozenset[type], ledger: Ledger
) -> dict[str, Forwards]:
    table: dict[str, Forwards] = {}
    runners: dict[int, BlockRunner] = {}
    calls = (analysis.calls.get("one"), analysis.calls.get("few"))
    prepared = {what: plans(analysis, what, backend) for what in dict.fromkeys(analysis.kind_of_block)}
    for index, block in enumerate(analysis.blocks):
        shared = prepared.get(analysis.kind_of_block[index]) if analysis.kind_of_block else None
        if not shared or calls[0] is None or calls[1] is None:
            continue
        forwards = _bound(block.path, shared, block.module)
        runners[index] = BlockRunner(block.module, forwards, (calls[0][index], calls[1][index]), cache_types)
        table[block.path] = forwards

    if ("root", ONE.name) in analysis.graphs and calls[0] is not None and calls[1] is not None:
        pairs = list(zip(calls[0], calls[1], strict=True))

        def call_block(index: int) -> Any:
            runner = runners.get(index)
            if runner is not None:
                return runner.run
            block, pair = analysis.blocks[index].module, pairs[index]
            original = original_class(block).__call__

            def stock(h: Any, cache: Any) -> Any:
                args, kwargs = pair[h.shape[1] > 1].bind(cache)
                return original(block, h, *args, **kwargs)

            return stock

        shared = plans(analysis, "root", backend, call_block)
        root = _bound("model", shared, model)
        ledger.patch(model, RootRunner(model, root, len(analysis.blocks), cache_types).call())
        table["model"] = root
    for index, runner in runners.items():
        ledger.patch(analysis.blocks[index].module, runner.call())
    _offer_logsumexp(analysis, backend)
    leaf_plans = {what: plans(analysis, what, backend) for what in dict.fromkeys(w for _, _, w in analysis.leaves)}
    for path, module, what in analysis.leaves:
        shared = leaf_plans[what]
        if shared:
            forwards = _bound(path, shared, module)
            forwards.one = forwards.few
            x = _input_type(analysis, what)
            assert isinstance(x.shape[-1], int)
            ledger.patch(module, LeafRunner(module, forwards, x.shape[-1], x.dtype.mlx).call())
            table[path] = forwards
    return table


def _bound(name: str, shared: Mapping[str, Plan], module: nn.Module) -> Forwards:
    forwards = Forwards(name)
    for variant, plan in shared.items():
        setattr(forwards, variant, plan.bind(module))
    return forwards


def _offer_logsumexp(analysis: Analysis, backend: Backend) -> None:
    shared = plans(analysis, "logsumexp", backend) if ("logsumexp", "few") in analysis.graphs else {}
    if shared:
        forwards = _bound("sampling", shared, nn.Module())
        forwards.one = forwards.few
        x = _input_type(analysis, "logsumexp")
        assert isinstance(x.shape[-1], int)
        register_logsumexp(x.dtype.mlx, x.shape[-1], forwards)


def _input_type(analysis: Analysis, what: str) -> ArrayType:
    """Type of the rows that a one-op graph takes."""
    x = analysis.graphs[what, "few"].partition.graph.inputs[0][1]
    assert isinstance(x, ArrayType)
    return x


def restore(model: nn.Module) -> nn.Module:
    """Undoes ``optimize``: every module gets its own class back. Does nothing to a model that is not patched."""
    state = state_of(model)
    if state is not None:
        state.ledger.restore()
        del vars(model)[_STATE]
    strip(model)
    return model


def explain(model: nn.Module) -> str:
    """Block -> region -> kernel, and why the rest is not fused, as text.

    ``model`` is analysed first when it is not optimized yet.
    """
    from mlx_autoperfect.report import explain_text

    state = state_of(model)
    analysis = state.analysis if state is not None else analyze(model)[0]
    return explain_text(analysis, state.forwards if state is not None else {})
