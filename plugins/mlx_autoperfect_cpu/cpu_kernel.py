"""``cpu_kernel``: custom C++ kernels as nodes of MLX's graph, the way ``mx.fast.metal_kernel`` does it on a GPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_autoperfect.errors import AutoperfectError, Failure, UnavailableError
from mlx_autoperfect_cpu.build import TEMPLATES, BuildFailure, SourceUnit
from mlx_autoperfect_cpu.extension import NATIVE, load_backend
from mlx_autoperfect_cpu.kernel_source import ENTRY, FIRST_DIM, Signature, TemplateValue, render
from mlx_autoperfect_cpu.names import check_names

_UINT32_MAX = 2**32 - 1


class KernelCompileError(AutoperfectError):
    """The source of a kernel does not compile.

    Attributes:
        log: everything the compiler printed; line numbers are those of the source as it was given.
    """

    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"cpu_kernel {name!r} does not compile:\n{log}")
        self.log = log


@dataclass(frozen=True)
class CpuKernel:
    """A custom kernel; made by :func:`cpu_kernel`. Compiled at the first call with given dtypes and template."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str
    ensure_row_contiguous: bool
    _plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self,
        *,
        inputs: Sequence[mx.array | bool | int | float],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        template: Sequence[tuple[str, TemplateValue]] = (),
        grid: tuple[int, int, int] | None = None,
        init_value: float | None = None,
        threads: int | None = None,
        verbose: bool = False,
        stream: mx.Stream | mx.Device | None = None,
    ) -> list[mx.array]:
        """Adds the kernel to the graph; it runs when an output is evaluated.

        Args:
            inputs: one array or number per input name.
            output_shapes: one shape per output name.
            output_dtypes: one dtype per output name.
            template: names with dtypes, whole numbers or booleans, constants in the source.
            grid: sizes along x, y and z; the body runs once per point, points shared among threads. Without it the
                body runs once, on one thread.
            init_value: fills the outputs before the body runs; without it they start uninitialised.
            threads: threads to use at most; default: the setting ``AUTOPERFECT_THREADS``.
            verbose: prints the generated source.
            stream: a CPU stream or device; default: the CPU's default stream.

        Returns:
            One lazy array per output name.

        Raises:
            ValueError: an argument that does not fit; says which.
            KernelCompileError: the source does not compile.
            UnavailableError: this machine cannot compile kernels; ``failure`` says why.
        """
        arrays = [item if isinstance(item, mx.array) else mx.array(item) for item in inputs]
        self._expect("inputs", len(arrays), self.input_names)
        self._expect("output_shapes", len(output_shapes), self.output_names)
        self._expect("output_dtypes", len(output_dtypes), self.output_names)
        if threads is not None and threads < 1:
            raise ValueError(f"cpu_kernel {self.name!r}: threads is 1 or more, not {threads}")
        shapes = [tuple(int(size) for size in shape) for shape in output_shapes]
        signature = Signature(
            inputs=tuple((n, a.dtype, a.ndim == 0) for n, a in zip(self.input_names, arrays, strict=True)),
            outputs=tuple(zip(self.output_names, output_dtypes, strict=True)),
            template=tuple((key, value) for key, value in template),
            grid=grid is not None,
            init=init_value is not None,
        )
        key = (signature, tuple(type(value) for _, value in template), tuple(map(len, shapes)), threads)
        plan = self._plans.get(key)
        if plan is None or verbose:
            plan = self._plans[key] = self._prepare(signature, [len(shape) for shape in shapes], threads, verbose)
        dims = [size for shape in shapes for size in shape]
        symbols = [*_grid_sizes(self.name, grid), *_initial_value(init_value), *dims]
        result: list[mx.array] = plan(arrays, symbols, stream)
        return result

    def _expect(self, what: str, count: int, names: Sequence[str]) -> None:
        if count != len(names):
            raise ValueError(f"cpu_kernel {self.name!r}: {what} has {count} entries, the kernel names {len(names)}")

    def _prepare(self, signature: Signature, ranks: Sequence[int], threads: int | None, verbose: bool) -> Any:
        """Compiles (or finds) the kernel and wraps it in a plan."""
        for key, value in signature.template:
            if not isinstance(value, mx.Dtype | int):
                kind = type(value).__name__
                raise ValueError(f"cpu_kernel {self.name!r}: template {key!r} is a dtype, int or bool, not {kind}")
        check_names(self.name, [key for key, _ in signature.template])
        text = render(self.name, self.source, self.header, signature)
        if verbose:
            print(text)
        backend = load_backend()
        if isinstance(backend, Failure):
            raise UnavailableError(backend)
        unit = SourceUnit(self.name, text, (NATIVE, TEMPLATES))
        library = backend.cache.compile_and_load([unit], backend.toolchain)[0]
        if isinstance(library, BuildFailure):
            raise KernelCompileError(self.name, library.log or library.detail)
        if isinstance(library, Failure):
            raise UnavailableError(library)
        first = len(signature.inputs)
        buffers = list(range(first + len(signature.outputs)))
        layout = True if self.ensure_row_contiguous else None
        outputs, symbol = [], FIRST_DIM
        for (_, dtype), rank in zip(signature.outputs, ranks, strict=True):
            outputs.append((dtype, [(1, symbol + axis) for axis in range(rank)]))
            symbol += rank
        return backend.module.Plan(
            steps=[(library.address(ENTRY), buffers[:first], buffers[first:], 0, [], 0 if signature.grid else 1)],
            inputs=[(dtype, -1, [], layout, name) for name, dtype, _ in signature.inputs],
            outputs=outputs,
            threads=threads or 0,
            name=self.name,
        )


def cpu_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
) -> CpuKernel:
    """Makes a custom CPU kernel from the body of a C++ function; see ``docs/cpu_kernel.md``.

    Args:
        name: an identifier; names the kernel in messages and in the graph.
        input_names: names of the inputs in ``source``: ``const T*``, or ``const T&`` for a number or an array without
            axes. ``<name>_shape``, ``<name>_strides`` (in elements) and ``<name>_ndim`` exist where they are used.
        output_names: names of the outputs in ``source``: ``T*``, row-contiguous.
        source: the body, C++20.
        header: text before the function: includes, helper functions.
        ensure_row_contiguous: copies an input that is not row-contiguous before the kernel runs; otherwise the
            kernel must use the strides.

    Raises:
        ValueError: a name that is no C++ identifier, is used twice or is taken; no output.
    """
    check_names(name, [name], own=True)
    check_names(name, [*input_names, *output_names])
    if not output_names:
        raise ValueError(f"cpu_kernel {name!r}: a kernel has at least one output")
    return CpuKernel(name, tuple(input_names), tuple(output_names), source, header, ensure_row_contiguous)


def _grid_sizes(name: str, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if grid is None:
        return (1, 1, 1)
    if len(grid) != 3 or not all(0 <= size <= _UINT32_MAX for size in grid):
        raise ValueError(f"cpu_kernel {name!r}: grid is three sizes from 0 to {_UINT32_MAX}, not {grid!r}")
    return grid


def _initial_value(value: float | None) -> tuple[int, int]:
    """The value as a whole number and as the bits of a double; the kernel takes what fits the output's dtype."""
    if value is None:
        return 0, 0
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    whole = int(value) if value == value and abs(value) < 2**63 else 0
    return whole, bits
