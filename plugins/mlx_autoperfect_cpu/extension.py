"""Compiles, once, and loads the native module that runs kernels as nodes of MLX's graph (``native/``)."""

from __future__ import annotations

import atexit
import sys
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Lock
from types import ModuleType

import mlx.core  # noqa: F401  (registers mlx.core.array, which the native module shares)

from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.settings import Settings
from mlx_autoperfect_cpu.build import TEMPLATES, BuildCache, SourceUnit, usable_cores
from mlx_autoperfect_cpu.headers import Headers, find_headers
from mlx_autoperfect_cpu.toolchain import Toolchain, find_toolchain

NATIVE = Path(__file__).parent / "native"
_NAME = "mlx_autoperfect_native"
_DEFINES = ("-DNDEBUG", "-DNB_COMPACT_ASSERTIONS", "-DNB_DOMAIN=mlx", f"-DAP_MODULE_NAME={_NAME}")
_SIZE = ("-fvisibility=hidden", "-fno-strict-aliasing", "-ffunction-sections", "-fdata-sections")
_LOADING = Lock()
_DRAIN_SECONDS = 10.0
"""How long the end of the process waits for kernels that are still queued (see ``native/drain.h``)."""
_RUNTIME = '#include "nb_combined.cpp"\n'


@dataclass(frozen=True)
class Backend:
    """All that is needed to compile and run CPU kernels.

    Attributes:
        toolchain: the compiler.
        cache: where its binaries are kept.
        module: the native module, with ``Plan``, ``set_poison``, ``set_threads`` and ``threads``.
    """

    toolchain: Toolchain
    cache: BuildCache
    module: ModuleType


def load_backend() -> Backend | Failure:
    """The CPU backend with the process's settings; the same object at every call.

    The native module is compiled when the cache lacks it. Its default number of threads is the setting ``threads``,
    else the cores that this process may use.

    Returns:
        The backend, or a failure: ``NO_COMPILER``, ``NO_HEADERS``, ``COMPILE_ERROR``, ``LOAD_ERROR``, ...
    """
    with _LOADING:
        return _load_backend()


@cache
def _load_backend() -> Backend | Failure:
    settings = Settings.from_env()
    toolchain = find_toolchain(cache_dir=settings.cache_dir)
    if isinstance(toolchain, Failure):
        return toolchain
    cache = BuildCache(settings.cache_dir)
    built = build_extension(cache, toolchain)
    if isinstance(built, Failure):
        return built
    module = _load(built)
    if isinstance(module, Failure):
        return module
    module.set_threads(settings.threads or usable_cores())
    atexit.register(module.drain, _DRAIN_SECONDS)
    return Backend(toolchain, cache, module)


def load_extension() -> ModuleType | Failure:
    """The native module of :func:`load_backend`, or its failure."""
    backend = load_backend()
    return backend if isinstance(backend, Failure) else backend.module


def build_extension(cache: BuildCache, toolchain: Toolchain) -> Path | Failure:
    """Path of the compiled module, from the cache or made now (two compilers side by side, then a link)."""
    headers = find_headers()
    if isinstance(headers, Failure):
        return headers
    runtime, module = cache.compile(_objects(headers, toolchain), toolchain)
    for part in (runtime, module):
        if isinstance(part, Failure):
            return part
    return cache.compile([_link(headers, toolchain, [str(runtime), str(module)])], toolchain)[0]


def _objects(headers: Headers, toolchain: Toolchain) -> tuple[SourceUnit, SourceUnit]:
    nanobind = (f"-I{headers.nanobind / 'include'}", f"-I{headers.nanobind / 'ext/robin_map/include'}")
    common = ("-c", "-pthread", f"-I{headers.python}", *nanobind, *_DEFINES, *_SIZE)
    sources = f"-I{headers.nanobind / 'src'}"
    runtime = SourceUnit("nanobind", _RUNTIME, (), (*common, "-Os", sources), headers.versions, ".o")
    text = (NATIVE / "extension.cpp").read_text()
    flags = (*common, "-O2", f"-I{headers.mlx}")
    return runtime, SourceUnit("extension", text, (NATIVE, TEMPLATES), flags, headers.versions, ".o")


def _link(headers: Headers, toolchain: Toolchain, objects: list[str]) -> SourceUnit:
    if sys.platform == "darwin":
        system: tuple[str, ...] = ("-undefined", "dynamic_lookup", "-Wl,-dead_strip")
    else:
        system = ("-Wl,-s", "-Wl,--gc-sections")
    folder = headers.library.parent
    flags = ("-pthread", *objects, str(headers.library), f"-Wl,-rpath,{folder}", *system)
    return SourceUnit(_NAME, "", (), flags, headers.versions)


def _load(path: Path) -> ModuleType | Failure:
    loader = ExtensionFileLoader(_NAME, str(path))
    spec = spec_from_file_location(_NAME, path, loader=loader)
    try:
        if spec is None:
            raise ImportError("no module specification")
        module = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        return Failure(Stage.BUILD, Reason.LOAD_ERROR, f"the native module does not load: {error}", path.name)
    if not module.shares_mlx():
        detail = "the native module does not share MLX's array type: MLX was built with another nanobind"
        return Failure(Stage.BUILD, Reason.LOAD_ERROR, detail, path.name)
    return module
