"""The real model: fetched once, compared with the reference reader, and asked a question."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm import generate, load

from mlx_autoperfect.fetch import known_gguf, smollm2_folder
from tests.fetch.stored import stored_values
from tests.fetch.tiny_gguf import BLOCK

pytestmark = pytest.mark.real_model

GOLDEN = {
    "What is the capital of France?": [1780, 314, 260, 3575, 282, 4649, 47],
    "  leading and trailing  ": [216, 2899, 284, 35079, 256],
    "1234567890 3.14159": [33, 34, 35, 36, 37, 38, 39, 40, 41, 32, 216, 35, 30, 33, 36, 33, 37, 41],
    "def foo(x):\n    return x**2  # comment\n": [
        1604,
        29856,
        24,
        104,
        727,
        472,
        1003,
        1792,
        828,
        34,
        216,
        907,
        5189,
        198,
    ],
    "tabs\tand\nnew\r\nlines\n\n\n  x": [100, 7366, 197, 397, 198, 2241, 201, 198, 5110, 1116, 3805, 1792],
    "na\u00efve caf\u00e9": [3546, 46494, 37366],
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


def test_every_weight_is_exact(folder: Path) -> None:
    values = stored_values(folder, json.loads((folder / "config.json").read_text()))
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for layer in range(30):
        names |= {
            f"blk.{layer}.{module}.weight": f"model.layers.{layer}.{target}.weight"
            for module, (target, _) in BLOCK.items()
        }
    tensors = gguf.GGUFReader(known_gguf("smollm2-135m")).tensors
    assert {names[tensor.name] for tensor in tensors} == values.keys()
    pairs_to_halves = np.arange(576).reshape(9, 32, 2).swapaxes(1, 2).reshape(-1)
    for tensor in tensors:
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            wanted = wanted[pairs_to_halves[: len(wanted)]]
        np.testing.assert_array_equal(values[names[tensor.name]], wanted, err_msg=tensor.name)


def test_text_becomes_the_same_tokens_as_in_llama_cpp(folder: Path) -> None:
    """The ids were printed by llama.cpp's llama-tokenize from the same GGUF."""
    _, tokenizer = load(str(folder), lazy=True)
    for text, ids in GOLDEN.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text


def test_it_answers(folder: Path) -> None:
    """In float32, because stock MLX is slow in float16 on a CPU."""
    model, tokenizer = load(str(folder))
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype == mx.float16 else a, model.parameters()))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert generate(model, tokenizer, prompt, max_tokens=12) == "The capital of France is Paris."


def test_a_second_call_only_looks(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
