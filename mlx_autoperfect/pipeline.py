"""The pipeline: from a model to prepared forwards. The only module that knows every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from mlx_autoperfect.capture.blocks import Block, find_blocks, linear_leaves
from mlx_autoperfect.capture.leaf import capture_linear, logsumexp_graph
from mlx_autoperfect.capture.markers import CaptureError
from mlx_autoperfect.capture.model import BlockCall, RootCapture, capture_block, capture_root, fingerprint
from mlx_autoperfect.capture.regime import DECODE, PREFILL, Regime
from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.fusion.inline import inline_blocks
from mlx_autoperfect.fusion.partition import Fuel, Partition, partition
from mlx_autoperfect.fusion.region import Region, RegionKind
from mlx_autoperfect.graph.graph import Graph
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.kernel.ir import Kernel
from mlx_autoperfect.kernel.lower import lower
from mlx_autoperfect.passes.driver import Applied, canonicalize
from mlx_autoperfect.runtime.assemble import Plan, assemble
from mlx_autoperfect.runtime.sequence import Proven
from mlx_autoperfect.store.verdicts import VerdictStore
from mlx_autoperfect.verify.judge import Verdict
from mlx_autoperfect.verify.pool import judge_all
from mlx_autoperfect.verify.request import Request


@dataclass(frozen=True)
class Variant:
    """One way a module is run: the regime it is captured in, and which matrix anchor its kernels have."""

    name: str
    regime: Regime
    many_rows: bool


ONE = Variant("one", DECODE, False)
FEW = Variant("few", PREFILL, False)
MANY = Variant("many", PREFILL, True)
VARIANTS = (ONE, FEW, MANY)


@dataclass(frozen=True)
class Job:
    """A region that wants a kernel, in one variant; equal jobs of different layers are one."""

    region: Region
    many_rows: bool

    @property
    def key(self) -> str:
        return f"{self.region.signature}.{'many' if self.many_rows and self.region.kind is RegionKind.GEMM else 'few'}"


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        kernel: the lowered kernel, when there is one.
        source: its source, when it was rendered.
        verdict: what the judge said, when it was asked.
        proven: the kernel ready to run, when the verdict was PASSED.
        failure: why there is no kernel.
        stored: whether the verdict came from the store.
    """

    kernel: Kernel | None = None
    source: Source | None = None
    verdict: Verdict | None = None
    proven: Proven | None = None
    failure: Failure | None = None
    stored: bool = False


@dataclass(frozen=True)
class Captured:
    """A module's graph in one variant, cut into regions."""

    name: str
    variant: Variant
    partition: Partition
    applied: tuple[Applied, ...]


@dataclass
class Analysis:
    """Everything that was found out about a model: what ``explain`` prints.

    Attributes:
        blocks: the blocks, in order.
        calls: per variant name, how the root calls its blocks.
        graphs: per ``(what, variant)``, the cut graph; what is ``root``, a block's fingerprint or a leaf's text.
        kind_of_block: fingerprint per block, ``""`` when blocks were not reached.
        leaves: ``(path, module, what)`` of the linear leaves.
        failures: what could not be captured, and why.
        outcomes: by job key.
        seconds: time per stage.
    """

    blocks: tuple[Block, ...] = ()
    calls: dict[str, tuple[BlockCall, ...]] = field(default_factory=dict)
    graphs: dict[tuple[str, str], Captured] = field(default_factory=dict)
    kind_of_block: list[str] = field(default_factory=list)
    leaves: list[tuple[str, nn.Module, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def jobs(self) -> dict[str, Job]:
        """Every region that wants a kernel, once."""
        found: dict[str, Job] = {}
        for captured in self.graphs.values():
            for region in captured.partition.regions:
                if region.kind is not RegionKind.STOCK:
                    job = Job(region, captured.variant.many_rows)
                    found.setdefault(job.key, job)
        return found

    def proven(self, variant: Variant) -> dict[str, Proven]:
        """The proven kernels of a variant, by region signature."""
        table: dict[str, Proven] = {}
        for captured in self.graphs.values():
            if captured.variant is variant:
                for region in captured.partition.regions:
                    outcome = self.outcomes.get(Job(region, variant.many_rows).key)
                    if outcome is not None and outcome.proven is not None:
                        table[region.signature] = outcome.proven
        return table


# Layers that one node of MLX's graph runs at decode: fewer nodes cost less on the host, but MLX copies the list of
# inputs for every output, which grows with the square of this.
_UPDATES_PER_NODE = 5

# What says nothing about the kernel, only about this attempt: judged again at the next start.
_TRANSIENT = frozenset({Reason.NOT_JUDGED.value, Reason.TIMED_OUT.value})

Progress = Callable[[str, int, int], None]


class Pipeline:
    """Runs the stages for one model.

    Args:
        backend: renders, builds and runs kernels.
        store: verdicts reached earlier on this machine.
        caches: the host's caches, one per block, or ``None`` when it knows none.
        cache_types: cache classes that a captured block may update.
        fuel: how many fusions may be made.
        progress: told ``(stage, done, total)``.
    """

    def __init__(
        self,
        backend: Backend,
        store: VerdictStore,
        caches: Sequence[Any] | None,
        cache_types: frozenset[type],
        fuel: int | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.backend = backend
        self.store = store
        self.caches = caches
        self.cache_types = cache_types
        self.fuel = Fuel(fuel)
        self.progress = progress
        self.analysis = Analysis()

    def run(self, model: nn.Module) -> Analysis:
        """Captures, cuts, lowers, renders, builds and verifies."""
        for name, stage in (("capture", self._capture), ("leaves", self._leaves)):
            self._timed(name, lambda stage=stage: stage(model))  # type: ignore[misc]
        self._timed("prove", self._prove)
        return self.analysis

    def _timed(self, name: str, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.analysis.seconds[name] = time.perf_counter() - start

    # capture, canonicalize, partition

    def _capture(self, model: nn.Module) -> None:
        try:
            self.analysis.blocks = find_blocks(model)
        except CaptureError as error:
            self.analysis.failures.append(error.failure)
            return
        for variant in (ONE, FEW):
            try:
                root = capture_root(model, [block.module for block in self.analysis.blocks], variant.regime)
                self._cut("root", "model", root.graph, variant)
                if variant is FEW:
                    self._cut("logsumexp", "sampling", logsumexp_graph(root.graph), variant)
            except CaptureError as error:
                self._failed(error, f"model ({variant.regime.name})")
                continue
            self.analysis.calls[variant.name] = root.calls
            self._capture_blocks(root, variant)

    def _capture_blocks(self, root: RootCapture, variant: Variant) -> None:
        kinds = [
            f"{fingerprint(block.module)}\n{call.bind('cache')} {call.dtype} {call.width}"
            for block, call in zip(self.analysis.blocks, root.calls, strict=True)
        ]
        self.analysis.kind_of_block = self.analysis.kind_of_block or [_short(kind) for kind in kinds]
        for index, what in enumerate(self.analysis.kind_of_block):
            if what in self.analysis.kind_of_block[:index]:
                continue
            block, call = self.analysis.blocks[index], root.calls[index]
            cache = self.caches[index] if self.caches is not None and index < len(self.caches) else None
            if cache is not None and type(cache) not in self.cache_types:
                detail = f"its cache is a {type(cache).__name__}"
                self._failed(CaptureError(Reason.UNSUPPORTED_CACHE, detail), block.path)
                continue
            try:
                graph = capture_block(block.module, call, variant.regime, block.path)
                self._cut(what, block.path, graph, variant)
                self._same_hidden_state(graph, block, variant)
            except CaptureError as error:
                self._failed(error, f"{block.path} ({variant.regime.name})")

    def _same_hidden_state(self, graph: Graph, block: Block, variant: Variant) -> None:
        """The root was traced as if blocks kept the hidden state's type; where one does not, its graph is no use."""
        given, returned = graph.inputs[0][1], graph.types[graph.outputs[0]]
        if given == returned:
            return
        for name in (variant.name, MANY.name if variant is FEW else variant.name):
            self.analysis.graphs.pop(("root", name), None)
        detail = f"it takes {given} and returns {returned}; the model is not run as a whole"
        self._failed(CaptureError(Reason.DTYPE_RULE, detail), block.path)

    def _failed(self, error: CaptureError, where: str) -> None:
        failure = error.failure
        self.analysis.failures.append(Failure(failure.stage, failure.reason, failure.detail, where))

    def _cut(self, what: str, name: str, graph: Graph, variant: Variant) -> None:
        canonical, applied = canonicalize(graph)
        parts = partition(canonical, self.fuel)
        self.analysis.graphs[what, variant.name] = Captured(name, variant, parts, applied)
        if variant is FEW:
            self.analysis.graphs[what, MANY.name] = Captured(name, MANY, parts, applied)

    def _leaves(self, model: nn.Module) -> None:
        for path, module in linear_leaves(model):
            try:
                graph = capture_linear(module)
            except CaptureError as error:
                self._failed(error, path)
                continue
            what = f"linear {graph.content_hash}"
            if (what, FEW.name) not in self.analysis.graphs:
                self._cut(what, "linear layer", graph, FEW)
            self.analysis.leaves.append((path, module, what))

    # lower, render, build, verify, record

    def _prove(self) -> None:
        jobs = self.analysis.jobs()
        for key, job in jobs.items():
            self.analysis.outcomes[key] = self._render(job)
        rendered = {k: o for k, o in self.analysis.outcomes.items() if o.source is not None}
        fingerprint_ = self.backend.fingerprint() if rendered else ""
        verdicts = {k: self.store.find(_identity(o, fingerprint_)) for k, o in rendered.items()}
        wanted = [k for k, v in verdicts.items() if v is None or v.passed]
        built = dict(zip(wanted, self._build([rendered[k] for k in wanted]), strict=True))
        fresh = [k for k in wanted if verdicts[k] is None and not isinstance(built[k], Failure)]
        identities = [_identity(rendered[k], fingerprint_) for k in fresh]
        judged = self._judge([self._request(jobs[k], rendered[k]) for k in fresh], identities)
        found = {**verdicts, **dict(zip(fresh, judged, strict=True))}
        for key, outcome in rendered.items():
            executable, verdict_ = built.get(key), found[key]
            if isinstance(executable, Failure):
                self.analysis.outcomes[key] = Outcome(outcome.kernel, outcome.source, failure=executable)
            elif verdict_ is not None:
                self.analysis.outcomes[key] = _judged(outcome, verdict_, executable, key not in fresh)

    def _request(self, job: Job, outcome: Outcome) -> Request:
        assert outcome.kernel is not None and outcome.source is not None
        return Request(job.region, outcome.kernel, outcome.source)

    def _judge(self, requests: Sequence[Request], identities: Sequence[str]) -> list[Verdict]:
        """Verdicts of the guarded workers, in order; each is stored as it comes, so that Ctrl-C loses none."""
        found: dict[int, Verdict] = {}

        def done(index: int, verdict: Verdict) -> None:
            found[index] = verdict
            if verdict.reason not in _TRANSIENT:
                self.store.save(identities[index], verdict)
            self.progress("verify", len(found), len(requests))

        if requests:
            judge_all(requests, done)
        return [found[index] for index in range(len(requests))]

    def _render(self, job: Job) -> Outcome:
        kernel = lower(job.region, many_rows=job.many_rows)
        if isinstance(kernel, Failure):
            return Outcome(failure=kernel)
        source = self.backend.render(kernel)
        if isinstance(source, Failure):
            return Outcome(kernel, failure=source)
        return Outcome(kernel, source)

    def _build(self, outcomes: Sequence[Outcome]) -> list[Any]:
        sources = [o.source for o in outcomes if o.source is not None]
        total = len({source.text for source in sources})
        done = 0

        def built(_: str) -> None:
            nonlocal done
            done += 1
            self.progress("build", done, total)

        return self.backend.build(sources, built)


def _judged(outcome: Outcome, verdict: Verdict, executable: Any, stored: bool) -> Outcome:
    assert outcome.kernel is not None
    proven = Proven(outcome.kernel, executable) if verdict.passed else None
    return Outcome(outcome.kernel, outcome.source, verdict, proven, verdict.failure, stored)


def _short(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(outcome: Outcome, fingerprint_: str) -> str:
    """What a verdict is about: this kernel, this source, this compiler and machine."""
    assert outcome.kernel is not None and outcome.source is not None
    return _short(f"{outcome.kernel.content_hash} {outcome.source.content_hash} {fingerprint_}")


def _whole(analysis: Analysis, root: Captured) -> Partition:
    """The root with every block in place of its call, where all blocks were captured."""
    found = [analysis.graphs.get((what, root.variant.name)) for what in analysis.kind_of_block]
    captured = [c for c in found if c is not None]
    if len(captured) != len(analysis.blocks):
        return root.partition
    paths = [block.path for block in analysis.blocks]
    return inline_blocks(root.partition, list(zip(paths, (c.partition for c in captured), strict=True)))


def plans(
    analysis: Analysis, what: str, backend: Backend, call_block: Callable[[int], Any] | None = None
) -> Mapping[str, Plan]:
    """The prepared forwards of one captured module by variant name; only those that launch a kernel."""
    found: dict[str, Plan] = {}
    for variant in VARIANTS:
        captured = analysis.graphs.get((what, variant.name))
        if captured is not None:
            parts = _whole(analysis, captured) if what == "root" else captured.partition
            plan = assemble(parts, analysis.proven(variant), backend, call_block)
            if plan.kernels:
                found[variant.name] = plan
            if plan.kernels and what == "root" and variant is ONE:
                found["in_place"] = assemble(
                    parts, analysis.proven(variant), backend, call_block, updates_per_node=_UPDATES_PER_NODE
                )
    return found


def count_kernels(outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """``(verified, rejected)`` among outcomes that reached the judge."""
    judged = [o for o in outcomes if o.verdict is not None]
    passed = sum(1 for o in judged if o.verdict is not None and o.verdict.passed)
    return passed, len(judged) - passed


__all__ = ["FEW", "MANY", "ONE", "VARIANTS", "Analysis", "Job", "Outcome", "Pipeline", "Stage", "plans"]
