"""The headers that the native extension is compiled against: Python's, MLX's and nanobind's."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mlx_autoperfect.errors import Failure, Reason, Stage

_NANOBIND_MAJOR = 3
"""Major version of nanobind that MLX 0.32's wheels are built with; another one has another ABI."""


@dataclass(frozen=True)
class Headers:
    """Where the headers are, and the versions they state.

    Attributes:
        python: folder of ``Python.h``.
        mlx: folder above ``mlx/mlx.h``.
        nanobind: nanobind's package folder (``include``, ``src`` and ``ext`` are below it).
        library: MLX's shared library, which the extension links to.
        versions: MLX, nanobind and Python ABI as one text, part of the extension's cache key.
    """

    python: Path
    mlx: Path
    nanobind: Path
    library: Path
    versions: str


def find_headers() -> Headers | Failure:
    """Finds the headers of the running interpreter's packages; the failure is ``NO_HEADERS``."""
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").is_file():
        return _missing(f"Python.h is not in {python}: install Python's development headers (python3-dev)")
    mlx = next((folder for folder in _package_folders("mlx") if (folder / "include/mlx/mlx.h").is_file()), None)
    if mlx is None:
        return _missing("MLX's C++ headers were not found: reinstall mlx from its wheel")
    library = next((path for path in sorted((mlx / "lib").glob("libmlx.*")) if path.suffix != ".a"), None)
    if library is None:
        return _missing(f"MLX's shared library is not in {mlx / 'lib'}: reinstall mlx from its wheel")
    nanobind = next((f for f in _package_folders("nanobind") if (f / "include/nanobind/nanobind.h").is_file()), None)
    if nanobind is None:
        return _missing("nanobind was not found: pip install 'mlx-autoperfect[cpu]'")
    nanobind_version = _macros(nanobind / "include/nanobind/nanobind.h", "NB_VERSION_")
    if nanobind_version[0] != _NANOBIND_MAJOR:
        found = ".".join(map(str, nanobind_version))
        needed = f"MLX needs {_NANOBIND_MAJOR}.x: pip install 'nanobind>=3.1,<4'"
        return _missing(f"nanobind {found} was found, but {needed}")
    stat = library.stat()
    versions = " ".join(
        [
            f"mlx {_macros(mlx / 'include/mlx/version.h', 'MLX_VERSION_')} {stat.st_size}",
            f"nanobind {nanobind_version}",
            f"python {sysconfig.get_config_var('SOABI')} {sysconfig.get_config_var('EXT_SUFFIX')}",
        ]
    )
    return Headers(python, mlx / "include", nanobind, library, versions)


def _package_folders(name: str) -> Iterator[Path]:
    spec = find_spec(name)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        yield Path(folder)


def _macros(header: Path, prefix: str) -> tuple[int, ...]:
    text = header.read_text()
    found = dict(re.findall(rf"#define {prefix}(MAJOR|MINOR|PATCH)\s+(\d+)", text))
    return tuple(int(found.get(part, -1)) for part in ("MAJOR", "MINOR", "PATCH"))


def _missing(what: str) -> Failure:
    return Failure(Stage.SETUP, Reason.NO_HEADERS, f"{what}; running stock mlx-lm")
