"""What the start-up hook adds to an unrelated Python program: `python -c pass` with and without the start-up files.

    python benchmarks/startup.py [RUNS] [--json FILE]

Makes two bare virtual environments, puts the start-up files and the host package into one of them, and starts
both interpreters in turn, in alternating order (ABBA). Prints the medians, the median of the paired differences
with a 95 % bootstrap interval, and the same for two environments without the files: the noise of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Overhead:
    """Paired comparison of two interpreters, all in milliseconds.

    Attributes:
        base: median start-up time without the files.
        patched: median with them.
        added: median of the paired differences.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        runs: number of pairs.
    """

    base: float
    patched: float
    added: float
    low: float
    high: float
    runs: int


def make(root: Path, hooked: bool) -> Path:
    """A bare environment, with the start-up files if ``hooked``; returns its interpreter."""
    venv.create(root, with_pip=False, symlinks=True)
    if hooked:
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(root), "platbase": str(root)}))
        for name in ("mlx_autoperfect.pth", "mlx_autoperfect.start"):
            shutil.copy(PROJECT / name, site)
        shutil.copytree(PROJECT / "plugins" / "mlx_autoperfect_lm", site / "mlx_autoperfect_lm")
    return root / "bin" / "python"


def start(python: Path, environment: dict[str, str]) -> float:
    """Milliseconds from the start to the end of one ``python -c pass``."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], env=environment, check=True)
    return (time.perf_counter() - begin) * 1e3


def compare(base: Path, patched: Path, runs: int, environment: dict[str, str]) -> Overhead:
    """Starts the two in turn, ``runs`` times each."""
    start(base, environment), start(patched, environment)
    pairs = []
    for index in range(runs):
        if index % 2:
            after, before = start(patched, environment), start(base, environment)
        else:
            before, after = start(base, environment), start(patched, environment)
        pairs.append((before, after))
    differences = [after - before for before, after in pairs]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(differences, k=runs)) for _ in range(1000))
    return Overhead(
        base=statistics.median(before for before, _ in pairs),
        patched=statistics.median(after for _, after in pairs),
        added=statistics.median(differences),
        low=medians[25],
        high=medians[974],
        runs=runs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="?", type=int, default=300)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("AUTOPERFECT", "PYTHON"))}
    with tempfile.TemporaryDirectory() as folder:
        bare, control = make(Path(folder) / "bare", False), make(Path(folder) / "control", False)
        hooked = make(Path(folder) / "hooked", True)
        figures = {
            "hook": compare(bare, hooked, arguments.runs, plain),
            "AUTOPERFECT=1": compare(bare, hooked, arguments.runs, plain | {"AUTOPERFECT": "1"}),
            "noise": compare(bare, control, arguments.runs, plain),
        }
    for name, found in figures.items():
        print(
            f"{name:14} {found.base:6.2f} -> {found.patched:6.2f} ms   "
            f"added {found.added:+.3f} ms [{found.low:+.3f}, {found.high:+.3f}]   {found.runs} pairs"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(found) for name, found in figures.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
