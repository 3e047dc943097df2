"""A damaged file is a clear error, never another exception and never other values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.convert import convert_gguf
from mlx_autoperfect.fetch.gguf import read_gguf
from tests.fetch.tiny_gguf import TOKENS, Tiny


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    Tiny(kind="Q4_1").write(path)
    return path.read_bytes()


def test_reads_what_the_reference_reader_reads(content: bytes, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    reference = gguf.GGUFReader(path)
    file = read_gguf(path)
    assert file.metadata["tokenizer.ggml.tokens"] == TOKENS
    assert file.metadata == {
        name: field.contents() for name, field in reference.fields.items() if not name.startswith("GGUF.")
    }
    assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        mine = file.tensors[tensor.name]
        assert mine.shape == tuple(int(size) for size in reversed(tensor.shape))
        np.testing.assert_array_equal(mine.data.reshape(-1), tensor.data.view(np.uint8).reshape(-1))


def test_every_cut_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    lengths = {*range(1, 64), *np.linspace(64, len(content) - 1, 300, dtype=int).tolist()}
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut short|not a GGUF|download it again"):
            read_gguf(path)


def test_damaged_bytes_never_crash(content: bytes, tmp_path: Path) -> None:
    """Either a ModelError or a whole folder; any other exception fails the test."""
    path = tmp_path / "damaged.gguf"
    out = tmp_path / "out"
    out.mkdir()
    header = content.index(b"blk.1.ffn_down") + 200
    random = np.random.default_rng(11)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for position in random.integers(4, header, size=3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            convert_gguf(path, out)
        except ModelError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "cannot be read as GGUF"),
        (b"PK\x03\x04 and so on", "not a GGUF file"),
        (b"GGUF\x01\x00\x00\x00" + bytes(16), "version 1;"),
        (b"GGUF\x00\x00\x00\x03" + bytes(16), "big-endian"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "cut short"),
    ],
)
def test_strange_heads(tmp_path: Path, head: bytes, message: str) -> None:
    path = tmp_path / "head.gguf"
    path.write_bytes(head)
    with pytest.raises(ModelError, match=message):
        read_gguf(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        read_gguf(tmp_path)
