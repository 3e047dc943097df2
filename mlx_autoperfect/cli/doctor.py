"""``mlx-autoperfect doctor``: what this machine is, and whether kernels can be made here."""

from __future__ import annotations

import argparse
import json
import os
import site
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mlx_autoperfect.device import Bandwidth, Device
    from mlx_autoperfect.hookspecs import Backend
    from mlx_autoperfect.settings import Settings

HOOK = "mlx_autoperfect.pth"


@runtime_checkable
class Describing(Protocol):
    """A backend that can say what it works with; backends need not have this."""

    def describe(self) -> Mapping[str, str]:
        """Names and values for a person: compiler, instruction set, threads."""


@dataclass(frozen=True)
class BackendReport:
    """One backend: whether it works here, why not, and what it works with."""

    name: str
    usable: bool
    problem: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that ``doctor`` found.

    Attributes:
        device: the machine.
        bandwidth: reading speeds, by size.
        backends: in the order in which they are tried.
        chosen: the backend that would run; empty when none would.
        problem: why no model can be made faster here; empty when one can.
        cache_dir, cache_problem, cache_bytes: the cache folder, why it cannot be written, its size.
        hook: path of the start-up file; empty when it is not installed.
        settings: those in force, by variable.
    """

    device: Device
    bandwidth: tuple[Bandwidth, ...]
    backends: tuple[BackendReport, ...]
    chosen: str
    problem: str
    cache_dir: str
    cache_problem: str
    cache_bytes: int
    hook: str
    settings: Mapping[str, str]


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine is, and whether kernels can be made here",
        description="Looks at the machine, measures how fast it reads memory, and says what would run.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0 when models can be made faster here; 1 otherwise, with the reason in the last line.
    """
    from rich.console import Console

    from mlx_autoperfect.settings import Settings

    settings = Settings.from_env()
    with Console(stderr=True).status("looking at this machine (the first time compiles the native module)"):
        diagnosis = diagnose(settings)
    if args.json:
        print(json.dumps(asdict(diagnosis), indent=2))
    else:
        _print(diagnosis)
    return 1 if diagnosis.problem else 0


def diagnose(settings: Settings) -> Diagnosis:
    """Looks at everything; about two seconds, and up to a minute when the native module must be compiled."""
    from mlx_autoperfect.api import choose_backend
    from mlx_autoperfect.device import describe, probe_bandwidth, usable_cores
    from mlx_autoperfect.errors import UnavailableError
    from mlx_autoperfect.hookspecs import backends, plugin_manager

    manager = plugin_manager()
    chosen = problem = ""
    try:
        chosen = choose_backend(settings, manager).name
    except UnavailableError as error:
        problem = str(error.failure)
    if settings.enabled is False:
        problem = "AUTOPERFECT switches it off: unset it"
    return Diagnosis(
        device=describe(),
        bandwidth=probe_bandwidth(settings.threads or usable_cores()),
        backends=tuple(map(_backend, backends(manager))),
        chosen=chosen,
        problem=problem,
        cache_dir=str(settings.cache_dir),
        cache_problem=_unwritable(settings.cache_dir),
        cache_bytes=_size(settings.cache_dir),
        hook=str(find_hook() or ""),
        settings=_in_force(settings),
    )


def _backend(backend: Backend) -> BackendReport:
    failure = backend.status()
    facts = backend.describe() if failure is None and isinstance(backend, Describing) else {}
    return BackendReport(backend.name, failure is None, str(failure or ""), dict(facts))


def find_hook() -> Path | None:
    """The start-up file that puts ``--autoperfect`` into mlx-lm's commands, where Python looks for such files."""
    folders = [sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages()]
    return next((path for folder in folders if (path := Path(folder) / HOOK).is_file()), None)


def _unwritable(folder: Path) -> str:
    """Why ``folder`` cannot be written; empty when it can, or can be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is read-only for this user"


def _size(folder: Path) -> int:
    from mlx_autoperfect.cli.cache import folder_size

    return folder_size(folder)


def _in_force(settings: Settings) -> dict[str, str]:
    from mlx_autoperfect.settings import TABLE

    values = {variable.name: getattr(settings, variable.field) for variable in TABLE}
    return {name: "default" if value in (None, "") else str(value) for name, value in values.items()}


def _print(diagnosis: Diagnosis) -> None:
    from rich.table import Table
    from rich.text import Text

    from mlx_autoperfect.cli.screen import output_console

    table = Table.grid(padding=(0, 2))
    for label, text in _rows(diagnosis):
        table.add_row(Text(label, "bold", no_wrap=True), Text(text, overflow="fold"))
    console = output_console()
    console.print(table)
    if diagnosis.problem:
        console.print(f"not ready: {diagnosis.problem}", style="red", markup=False, soft_wrap=True)
    else:
        console.print(f"ready: kernels run on the backend {diagnosis.chosen!r}", style="green", markup=False)


def _rows(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    from mlx_autoperfect.report.text import bytes_text

    device = diagnosis.device
    writable = diagnosis.cache_problem or "writable"
    rows = [
        ("processor", f"{device.cpu}, {device.cores} usable cores"),
        ("instructions", " ".join(device.features) or "unknown"),
        ("memory", bytes_text(device.memory) if device.memory else "unknown"),
        ("system", f"{device.system}, Python {device.python}"),
        ("versions", ", ".join(f"{name} {text}" for name, text in device.versions.items())),
    ]
    rows += [("reads memory", f"{b.gb_s:.1f} GB/s over {b.size >> 20} MiB ({b.method})") for b in diagnosis.bandwidth]
    for backend in diagnosis.backends:
        rows.append((f"backend {backend.name}", "usable" if backend.usable else backend.problem))
        rows += [(f"  {name}", text) for name, text in backend.facts.items()]
    rows += [
        ("cache", f"{diagnosis.cache_dir} ({writable}, {bytes_text(diagnosis.cache_bytes)})"),
        ("start-up hook", diagnosis.hook or "not installed: use `mlx-autoperfect run mlx_lm.generate ...`"),
    ]
    return rows + [(name, text) for name, text in diagnosis.settings.items()]
