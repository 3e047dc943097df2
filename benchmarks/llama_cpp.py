"""The yardstick: llama.cpp's own llama-bench on the same weights and threads.

The source comes with the source distribution of llama-cpp-python and is built for this machine's
CPU into ``<cache_dir>/bench/llama.cpp``, once. ``measure`` is for other benchmarks; as a script it
prints a table::

    python benchmarks/llama_cpp.py --threads 1 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mlx_autoperfect.errors import AutoperfectError
from mlx_autoperfect.fetch import known_gguf
from mlx_autoperfect.fetch.folder import lock_target, stage
from mlx_autoperfect.settings import Settings

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
_VENDORED = "vendor/llama.cpp/"
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


class BenchError(AutoperfectError):
    """llama-bench cannot be built or run."""


@dataclass(frozen=True)
class Rate:
    """Tokens per second over the repetitions of one test."""

    min: float
    median: float
    max: float
    samples: tuple[float, ...]


def measure(gguf: Path, threads: int, prompt: int = 128, gen: int = 64, repetitions: int = 5) -> dict[str, Any]:
    """Runs llama-bench on the CPU; builds it first when needed.

    Args:
        gguf: the model.
        threads: CPU threads.
        prompt: tokens of the prompt that is processed.
        gen: tokens that are generated, one at a time, from an empty context.
        repetitions: how often each test is run, after a warm-up.

    Returns:
        ``threads``, ``prompt_tokens``, ``generation_tokens``, ``commit`` (llama.cpp's), and
        ``prompt_tps`` and ``generation_tps`` (absent for 0 tokens), each with ``min``, ``median``,
        ``max`` and ``samples``.

    Raises:
        BenchError: llama-bench cannot be built, fails, or prints something else than its JSON.
    """
    command = [str(ensure_llama_bench()), "-m", str(gguf), "-ngl", "0", "-o", "json"]
    for flag, value in (("-t", threads), ("-p", prompt), ("-n", gen), ("-r", repetitions)):
        command += [flag, str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        tests = json.loads(done.stdout)
        rates = {("prompt_tps" if test["n_prompt"] else "generation_tps"): _rate(test["samples_ts"]) for test in tests}
        return {
            "threads": threads,
            "prompt_tokens": prompt,
            "generation_tokens": gen,
            "commit": tests[0]["build_commit"],
            **{name: asdict(rate) for name, rate in rates.items()},
        }
    except (ValueError, LookupError, TypeError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise BenchError(f"llama-bench ended with status {done.returncode} on {gguf} and said: {said}") from None


def ensure_llama_bench() -> Path:
    """The path of llama-bench, built for this CPU on the first call (minutes).

    Raises:
        BenchError: a tool is missing, or a step fails; names the step.
    """
    cache = Settings.from_env().cache_dir
    binary = cache / "bench" / "llama.cpp" / f"llama-bench-{VERSION}-{_cpu_key()}"
    with lock_target(binary, cache):
        if not binary.is_file():
            with stage(binary) as scratch:
                _build(scratch).replace(binary)
    return binary


def _rate(samples: list[float]) -> Rate:
    return Rate(min(samples), statistics.median(samples), max(samples), tuple(samples))


def _cpu_key() -> str:
    """Changes when a binary built for one CPU might not run on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def _build(scratch: Path) -> Path:
    cmake, ninja = _tool("cmake"), _tool("ninja")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run("pip download", [*pip, "--no-binary", PACKAGE, "--dest", str(scratch), f"{PACKAGE}=={VERSION}"])
    source = _unpack(next(scratch.glob("*.tar.gz")), scratch)
    build = scratch / "build"
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    _run("cmake", [cmake, "-S", str(source), "-B", str(build), *generator, *options])
    _run("ninja", [ninja, "-C", str(build), "-j", str(_cores()), "llama-bench"])
    return build / "bin" / "llama-bench"


def _tool(name: str) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(name, path=path)
    if found is None:
        raise BenchError(
            f"{name} is needed to build llama.cpp and is not on the PATH; install it, with pip for example"
        )
    return found


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as sdist:
        members = [member for member in sdist if _VENDORED in member.name]
        sdist.extractall(folder, members=members, filter="data")
    return next(folder.glob(f"*/{_VENDORED}"))


def _run(step: str, command: list[str]) -> None:
    """Runs one step; ninja's count of finished commands moves the bar."""
    said: deque[str] = deque(maxlen=12)
    environment = {**os.environ, "NINJA_STATUS": "%f/%t "}
    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
        ) as process,
    ):
        task = progress.add_task(f"llama-bench: {step}", total=None)
        for line in process.stdout or ():
            said.append(line.rstrip())
            if counts := re.match(r"(\d+)/(\d+) ", line):
                progress.update(task, completed=int(counts[1]), total=int(counts[2]))
    if process.returncode:
        lines = "\n".join(said)
        raise BenchError(f"llama-bench could not be built: {step} failed with status {process.returncode}:\n{lines}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> int:
    """Measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description="tokens per second of llama.cpp on this machine's CPU")
    parser.add_argument("--gguf", type=Path, help="the model; default: SmolLM2-135M, fetched")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, _cores()}))
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--gen", type=int, default=64, help="generated tokens")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    try:
        gguf = args.gguf or known_gguf("smollm2-135m")
        results = [measure(gguf, threads, args.prompt, args.gen, args.repetitions) for threads in args.threads]
    except (AutoperfectError, OSError) as error:
        print(f"llama_cpp.py: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(results, indent=2))
        return 0
    table = Table("threads", "test", "min", "median", "max", title="llama.cpp, tokens/s", box=None)
    for result in results:
        for test, tokens in (("prompt", args.prompt), ("generation", args.gen)):
            if rate := result.get(f"{test}_tps"):
                figures = (f"{rate[name]:.1f}" for name in ("min", "median", "max"))
                table.add_row(str(result["threads"]), f"{test} {tokens}", *figures)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
