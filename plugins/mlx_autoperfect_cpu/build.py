"""A compile cache addressed by content: the same source, headers, compiler and CPU give the same file.

Entries are checked when they are used (``entries.py``); what is missing or damaged is compiled, several at once.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect_cpu.compiler import CompilerRuns
from mlx_autoperfect_cpu.entries import entry_path, is_valid, locked, publish, record_path
from mlx_autoperfect_cpu.toolchain import Toolchain

TEMPLATES = Path(__file__).parent / "templates"
_LOG = logging.getLogger("mlx_autoperfect")
_HEADER_SUFFIXES = frozenset({".h", ".hpp", ".inc"})
_DISK_FULL = os.strerror(errno.ENOSPC)


@dataclass(frozen=True)
class SourceUnit:
    """One C++ source to compile.

    Attributes:
        name: what messages call it; an identifier.
        text: the source.
        include_dirs: folders of our own headers; the content of every header in them is part of the key.
        flags: further compiler flags, after the toolchain's.
        salt: further key material, such as the version of a header that ``include_dirs`` does not hold.
        suffix: ``.so`` for a library; ``.o`` for an object (``flags`` must then hold ``-c``).
    """

    name: str
    text: str
    include_dirs: tuple[Path, ...] = (TEMPLATES,)
    flags: tuple[str, ...] = ()
    salt: str = ""
    suffix: str = ".so"


@dataclass(frozen=True)
class BuildFailure(Failure):
    """A failed compilation; ``log`` is all that the compiler printed."""

    log: str = ""


@dataclass(frozen=True)
class Library:
    """A loaded shared library. It stays loaded as long as the process lives."""

    path: Path
    handle: ctypes.CDLL

    def address(self, symbol: str) -> int:
        """Address of an exported function.

        Raises:
            LookupError: the library exports no such name.
        """
        try:
            function = self.handle[symbol]
        except AttributeError:
            raise LookupError(f'{self.path.name} exports no function {symbol!r}; declare it extern "C"') from None
        return ctypes.cast(function, ctypes.c_void_p).value or 0


class BuildCache:
    """Compiles sources once and finds the binaries again, safe under several processes and threads.

    Args:
        root: the cache folder; created when needed. When it cannot be written to, a temporary folder takes its place
            until the process ends, and one line is logged (``CACHE_UNWRITABLE``).
        jobs: compilers that run at once; default: the cores this process may use.
        timeout: seconds that one compilation may take.
    """

    def __init__(self, root: Path, *, jobs: int | None = None, timeout: float = 120.0) -> None:
        self._roots = [root]
        self._jobs = jobs or usable_cores()
        self._timeout = timeout
        self._lock = threading.Lock()

    def compile(
        self,
        sources: Sequence[SourceUnit],
        toolchain: Toolchain,
        progress: Callable[[SourceUnit], None] | None = None,
    ) -> list[Path | Failure]:
        """Returns the binary of each source, in order, compiling those that the cache lacks in parallel.

        ``progress`` is called with each source that had to be compiled, when it is done. An interrupt (Ctrl-C) ends
        the compilers, removes what they left and is raised again.
        """
        digests = {dirs: _digest_headers(dirs) for dirs in {unit.include_dirs for unit in sources}}
        keys = [_key(unit, digests[unit.include_dirs], toolchain) for unit in sources]
        results: dict[str, Path | Failure] = {}
        missing: dict[str, SourceUnit] = {}
        for key, unit in zip(keys, sources, strict=True):
            found = self._find(key, unit)
            if found is None:
                missing[key] = unit
            else:
                results[key] = found
        if missing:
            results |= self._compile_all(missing, toolchain, progress)
        return [results[key] for key in keys]

    def load(self, path: Path) -> Library | Failure:
        """Loads a compiled library. One that does not load leaves the cache, so that the next build makes it anew."""
        try:
            return Library(path, ctypes.CDLL(str(path)))
        except OSError as error:
            with suppress(OSError):
                record_path(path).unlink()
            return Failure(Stage.BUILD, Reason.LOAD_ERROR, f"the compiled library does not load: {error}", path.name)

    def compile_and_load(
        self,
        sources: Sequence[SourceUnit],
        toolchain: Toolchain,
        progress: Callable[[SourceUnit], None] | None = None,
    ) -> list[Library | Failure]:
        """``compile`` and ``load`` in one; an entry of the cache that does not load is compiled once more."""
        loaded = [self._load_if_built(path) for path in self.compile(sources, toolchain, progress)]
        bad = [i for i, item in enumerate(loaded) if isinstance(item, Failure) and item.reason is Reason.LOAD_ERROR]
        rebuilt = self.compile([sources[i] for i in bad], toolchain, progress) if bad else []
        for i, path in zip(bad, rebuilt, strict=True):
            loaded[i] = self._load_if_built(path)
        return loaded

    def _load_if_built(self, path: Path | Failure) -> Library | Failure:
        return path if isinstance(path, Failure) else self.load(path)

    def _compile_all(
        self, missing: dict[str, SourceUnit], toolchain: Toolchain, progress: Callable[[SourceUnit], None] | None
    ) -> dict[str, Path | Failure]:
        runs = CompilerRuns()
        pool = ThreadPoolExecutor(min(self._jobs, len(missing)), thread_name_prefix="autoperfect-build")
        try:
            futures: dict[Future[Path | Failure], str] = {
                pool.submit(self._compile_one, key, unit, toolchain, runs): key for key, unit in missing.items()
            }
            pending = set(futures)
            while pending:
                # With a time limit: an interrupt that arrives just before an unlimited wait would go unnoticed.
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in done:
                    if progress is not None:
                        progress(missing[futures[future]])
            return {key: future.result() for future, key in futures.items()}
        except BaseException:
            runs.cancel()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _compile_one(self, key: str, unit: SourceUnit, toolchain: Toolchain, runs: CompilerRuns) -> Path | Failure:
        """Compiles under the key's lock, unless another process did so meanwhile."""
        while True:
            root = self._roots[-1]
            target = entry_path(root, key, unit.suffix)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with locked(root, key, runs, 2 * self._timeout):
                    return target if is_valid(target) else self._run(target, unit, toolchain, runs)
            except (OSError, NotImplementedError) as error:
                if not self._fall_back(root, error):
                    detail = f"kernels cannot be written, not even to {root}: {error}"
                    return Failure(Stage.BUILD, Reason.CACHE_UNWRITABLE, detail, unit.name)

    def _run(self, target: Path, unit: SourceUnit, toolchain: Toolchain, runs: CompilerRuns) -> Path | Failure:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            source = f"{unit.name}.cpp"
            (folder / source).write_text(unit.text)
            includes = [f"-I{directory}" for directory in unit.include_dirs]
            command = [*toolchain.command, *toolchain.flags, *includes, source, *unit.flags, "-o", target.name]
            done = runs.run(command, folder, self._timeout)
            if done.status is None:
                detail = f"the compiler took longer than {self._timeout:g} s"
                return BuildFailure(Stage.BUILD, Reason.COMPILE_TIMEOUT, detail, unit.name, log=done.log)
            if _DISK_FULL in done.log:
                raise OSError(errno.ENOSPC, _DISK_FULL)
            if done.status != 0:
                lines = done.log.splitlines() or [f"the compiler ended with status {done.status}"]
                detail = next((line for line in lines if "error:" in line), lines[0])
                return BuildFailure(Stage.BUILD, Reason.COMPILE_ERROR, detail, unit.name, log=done.log)
            publish(folder / target.name, target)
        return target

    def _find(self, key: str, unit: SourceUnit) -> Path | None:
        paths = (entry_path(root, key, unit.suffix) for root in self._roots)
        return next((path for path in paths if is_valid(path)), None)

    def _fall_back(self, failed: Path, error: Exception) -> bool:
        """Moves on to a temporary folder; false when that is what failed."""
        with self._lock:
            if failed is not self._roots[-1]:
                return True
            if len(self._roots) > 1:
                return False
            try:
                private = Path(tempfile.mkdtemp(prefix="mlx-autoperfect-"))
            except OSError:
                return False
            atexit.register(shutil.rmtree, private, ignore_errors=True)
            self._roots.append(private)
        _LOG.warning(
            "autoperfect: %s: %s cannot be written (%s); kernels are compiled again at every start until "
            "AUTOPERFECT_CACHE_DIR names a writable folder",
            Reason.CACHE_UNWRITABLE,
            failed,
            getattr(error, "strerror", None) or error,
        )
        return True


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key(unit: SourceUnit, headers: str, toolchain: Toolchain) -> str:
    parts = (unit.text, headers, unit.flags, unit.salt, unit.suffix, toolchain.fingerprint)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest_headers(folders: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in _HEADER_SUFFIXES:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()
