"""Shared by the core's tests: golden files, the backend of this machine, and one compile cache for the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_autoperfect.api import choose_backend
from mlx_autoperfect.errors import Reason, UnavailableError
from mlx_autoperfect.hookspecs import Backend, plugin_manager
from mlx_autoperfect.settings import Settings

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the golden tests see to tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: ``text`` is what ``tests/golden/name.txt`` holds."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run pytest with --update-golden and read what it wrote"
        assert text == path.read_text(), "if this change is meant, run pytest with --update-golden and review the diff"

    return check


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the session; the process's own setting wins, so that a warm cache can be reused."""
    with pytest.MonkeyPatch.context() as patch:
        folder = os.environ.get("AUTOPERFECT_CACHE_DIR") or str(tmp_path_factory.mktemp("kernels"))
        patch.setenv("AUTOPERFECT_CACHE_DIR", folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def cpu(kernel_cache: Path) -> Backend:
    """The CPU backend; a machine that cannot build kernels skips, with its reason."""
    try:
        return choose_backend(Settings(backend="cpu", cache_dir=kernel_cache), plugin_manager())
    except UnavailableError as error:
        # Only what this machine lacks is a reason to skip; a native module that does not compile is a failure.
        if error.failure.reason in (Reason.NO_COMPILER, Reason.NO_HEADERS):
            pytest.skip(str(error.failure))
        raise
