"""``demo``: two processes, one comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from mlx_autoperfect.cli import answer, demo
from mlx_autoperfect.cli.doctor import find_hook
from mlx_autoperfect.device import MIB, Bandwidth
from tests.cli.conftest import Done
from tests.models import Spec, build, parameters

KEYS = {"load_s", "prompt_tps", "generation_tps", "peak_memory_gb", "text"}
RATIOS = {"ratio_generation", "ratio_prompt", "weights_gb_s", "read_gb_s", "kernels_verified", "kernels_rejected"}


def made_up(speed: float, ids: list[int], measured: float | None = None) -> demo.Run:
    facts: dict[str, Any] = {
        "ids": ids,
        "text": "words",
        "prompt_tokens": 5,
        "prompt_tps": 10 * speed,
        "generation_tokens": len(ids),
        "generation_tps": speed,
        "peak_memory_gb": 0.5,
        "resident_gb": 1.0,
    }
    loaded = {"load_s": 1.0, "weight_bytes": 2_000_000_000, "patched": True, "verified": 9, "rejected": 1}
    return demo.Run(loaded, facts, facts if measured is None else {**facts, "generation_tps": measured})


def test_the_result_file() -> None:
    stock, patched = made_up(0.5, [1, 2]), made_up(40.0, [1, 2, 3], measured=50.0)
    result = demo.result_of(stock, patched, (Bandwidth(MIB, 120.0, "compiled"), Bandwidth(8 * MIB, 60.0, "compiled")))
    assert result.keys() == {"stock", "patched"} | RATIOS
    assert result["stock"].keys() == result["patched"].keys() == KEYS
    assert result["ratio_generation"] == pytest.approx(100)
    assert result["ratio_prompt"] == pytest.approx(80)
    assert result["weights_gb_s"] == pytest.approx(100)
    assert result["read_gb_s"] == 120.0
    assert (result["kernels_verified"], result["kernels_rejected"]) == (9, 1)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [([1, 2], [1, 2, 3], True), ([1, 2, 3], [1, 2], True), ([1, 2], [1, 3, 2], False), ([5], [1, 2], False)],
)
def test_answers_are_compared_as_far_as_both_go(first: list[int], second: list[int], same: bool) -> None:
    assert demo.same_beginning(first, second) is same


def test_weights_that_a_token_reads() -> None:
    tied = build(Spec(quant=None))
    assert answer._weights_per_token(tied) == sum(a.nbytes for a in parameters(tied).values())
    own = build(Spec(quant=None, config=(("tie_word_embeddings", False),)))
    arrays = parameters(own)
    embedding = arrays["model.embed_tokens.weight"].nbytes
    assert answer._weights_per_token(own) == sum(a.nbytes for a in arrays.values()) - embedding


def test_a_stock_model_has_no_kernels() -> None:
    assert answer._kernels(nn.Linear(2, 2)) == {"patched": False, "verified": 0, "rejected": 0, "regions": []}


@pytest.mark.skipif(find_hook() is None, reason="the start-up file is not installed in this environment")
@pytest.mark.usefixtures("cpu")
def test_the_whole_demo(
    model_folder: Path, tmp_path: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_autoperfect.device.probe_bandwidth", lambda _: (Bandwidth(MIB, 9.0, "compiled"),))
    words = ("--model", model_folder, "--output", tmp_path / "out", "--stock-tokens", 4, "--tokens", 20)
    done = command("demo", *words, "--prompt", "Hi")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result.keys() == {"stock", "patched"} | RATIOS
    assert result["patched"]["text"].startswith(result["stock"]["text"].rstrip("�"))
    assert result["kernels_verified"] > 0
    assert result["kernels_rejected"] == 0
    assert result["ratio_generation"] > 0
    assert "the first 4 tokens are the same" in done.out
    assert done.status == 0


def test_a_process_that_fails(tmp_path: Path) -> None:
    from rich.console import Console

    with pytest.raises(demo.DemoError, match="AUTOPERFECT=0 failed"):
        demo._answer(str(tmp_path), "Hi", on=False, tokens=2, measure=0, console=Console(quiet=True))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(demo.DemoError, match="cannot write"):
        demo._write(tmp_path / "file" / "result.json", {})
