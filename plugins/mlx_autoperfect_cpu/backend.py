"""The CPU backend: renders kernels as C++, builds them through the compile cache, runs them as MLX nodes."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mlx_autoperfect.codegen.source import Source
from mlx_autoperfect.errors import Failure
from mlx_autoperfect.graph.types import Dim, evaluate
from mlx_autoperfect.hookspecs import Append, Bound, Guard, Launch, ParamSlot, Sequencer, SequenceSpec, Slot
from mlx_autoperfect.kernel.ir import AttentionAnchor, Gemm, Kernel, MatVec
from mlx_autoperfect_cpu.build import TEMPLATES, Library, SourceUnit, _digest_headers
from mlx_autoperfect_cpu.extension import Backend as Native
from mlx_autoperfect_cpu.extension import load_backend
from mlx_autoperfect_cpu.headers import find_headers
from mlx_autoperfect_cpu.render import ENTRY, SYMBOL, render


@dataclass(frozen=True)
class Executable:
    """A built kernel: where its function is, and how much scratch it needs.

    Attributes:
        kernel: what it computes.
        address: of the function (see ``templates/abi.h``).
        scratch: bytes needed whatever the sizes.
        scratch_per_symbol: further bytes per unit of a symbol: ``(symbol index, bytes)``.
        library: keeps the code loaded.
    """

    kernel: Kernel
    address: int
    scratch: int
    scratch_per_symbol: tuple[tuple[int, int], ...]
    library: Library


def _dim(dim: Dim) -> tuple[int, int]:
    return (dim, -1) if isinstance(dim, int) else (dim.factor, SYMBOL[dim.symbol])


def _dims(slot: Slot) -> list[tuple[int, int]]:
    return [_dim(dim) for dim in slot.shape]


@dataclass(frozen=True)
class CpuSequence:
    """A native plan as the core's :class:`~mlx_autoperfect.hookspecs.Sequencer`."""

    plan: Callable[[list[Any], list[int]], list[Any]]
    bound: Callable[..., Bound]

    def __call__(self, inputs: list[Any], symbols: list[int]) -> list[Any]:
        return self.plan(inputs, symbols)

    def bind(self, params: Sequence[ParamSlot], guards: Sequence[Guard]) -> Bound:
        return self.bound(self.plan, list(params), list(guards))


def _step(launch: Launch | Append, first_output: int, module: Any) -> tuple[Any, ...]:
    """A launch as the native module takes it."""
    if isinstance(launch, Append):
        address = module.append_address(launch.filled.dtype.size)
        return (address, [launch.source], [first_output + launch.output], 0, [])
    executable = launch.executable
    per_symbol = list(executable.scratch_per_symbol)
    return (executable.address, list(launch.inputs), list(launch.outputs), executable.scratch, per_symbol)


class CpuBackend:
    """Implements :class:`mlx_autoperfect.hookspecs.Backend`."""

    name = "cpu"

    @property
    def _native(self) -> Native:
        state = load_backend()
        if isinstance(state, Failure):
            raise RuntimeError(str(state))
        return state

    def status(self) -> Failure | None:
        state = load_backend()
        return state if isinstance(state, Failure) else None

    def describe(self) -> dict[str, str]:
        """What ``mlx-autoperfect doctor`` prints of a backend that works."""
        tools, headers = self._native.toolchain, find_headers()
        return {
            "compiler": f"{tools.compiler} ({tools.version})",
            "instruction set": tools.isa,
            "threads": str(self._native.module.threads()),
            "headers": headers.detail if isinstance(headers, Failure) else headers.versions,
        }

    def fingerprint(self) -> str:
        parts = (self._native.toolchain.fingerprint, _digest_headers((TEMPLATES,)), version("mlx"))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def render(self, kernel: Kernel) -> Source | Failure:
        return render(kernel)

    def build(self, sources: Sequence[Source], progress: Callable[[str], None] | None = None) -> list[Any]:
        native = self._native
        units = [SourceUnit("kernel", source.text) for source in sources]
        names = {source.text: source.kernel.name for source in sources}
        unique = list({unit.text: unit for unit in units}.values())
        report = None if progress is None else lambda unit: progress(names[unit.text])
        loaded = native.cache.compile_and_load(unique, native.toolchain, report)
        by_text = {unit.text: library for unit, library in zip(unique, loaded, strict=True)}
        threads = native.module.threads()
        return [
            library if isinstance(library := by_text[source.text], Failure) else _executable(source, library, threads)
            for source in sources
        ]

    def sequence(self, spec: SequenceSpec) -> Sequencer:
        module = self._native.module
        appends = [launch for launch in spec.launches if isinstance(launch, Append)]
        kernels = [launch for launch in spec.launches if isinstance(launch, Launch)]
        first_output = len(spec.inputs)
        steps = [_step(launch, first_output, module) for launch in spec.launches]
        caches = {append.input for append in appends}
        inputs = [
            (s.dtype.mlx, len(s.shape), _dims(s), None if i in caches else not s.strided, s.name)
            for i, s in enumerate(spec.inputs)
        ]
        outputs = [(s.dtype.mlx, _dims(s)) for s in spec.outputs]
        temporaries = [(s.dtype.mlx, _dims(s)) for s in spec.temporaries]
        name = "+".join(launch.executable.kernel.name for launch in kernels)
        keep = tuple(launch.executable.library for launch in kernels)
        plan = module.Plan(
            steps=steps,
            inputs=inputs,
            outputs=outputs,
            temporaries=temporaries,
            name=name,
            keep=keep,
            views=[(first_output + append.output, _dims(append.filled)) for append in appends],
            updates=[(append.output, append.input) for append in appends],
        )
        return CpuSequence(plan, module.Bound)

    def poison(self, pattern: int | None) -> None:
        self._native.module.set_poison(pattern)


def _executable(source: Source, library: Library, threads: int) -> Executable:
    """Asks the library how much scratch it needs, as a bound that is linear in the symbols."""
    query = library.handle[f"{ENTRY}_scratch"]
    query.restype = ctypes.c_int64
    query.argtypes = [ctypes.POINTER(ctypes.c_int64)]

    def scratch(rows: int, keys: int) -> int:
        sizes = _sizes(source.kernel, rows, keys, threads)
        return int(query((ctypes.c_int64 * len(sizes))(*sizes)))

    # Scratch grows at most linearly with keys and with rows; far from the origin the slope has settled. Up to
    # `few` rows a kernel may keep partial results per row and key.
    far, few = 1 << 16, range(1, MatVec.max_rows + 1)
    base = max(scratch(rows, 1) for rows in few)
    slopes = {
        "L": -(-(scratch(far, 1) - scratch(1, 1)) // (far - 1)),
        "T": max(-(-(scratch(rows, far) - scratch(rows, 1)) // (far - 1)) for rows in few),
    }
    per_symbol = tuple((SYMBOL[name], slope) for name, slope in slopes.items() if slope > 0)
    return Executable(source.kernel, library.address(ENTRY), base + 4096, per_symbol, library)


def _sizes(kernel: Kernel, rows: int, keys: int, threads: int) -> tuple[int, ...]:
    """The sizes that a template's ``scratch_bytes`` takes."""
    anchor = kernel.anchor
    symbols = {"L": rows, "T": keys}
    if isinstance(anchor, Gemm):
        return (evaluate(anchor.rows, symbols), anchor.width, threads)
    if isinstance(anchor, AttentionAnchor):
        return (1, anchor.heads, anchor.groups, evaluate(anchor.rows, symbols), keys, threads)
    return (threads,)
