"""Conversion is lossless: every parameter, of every type and family, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from numpy.typing import NDArray

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.convert import convert_gguf
from tests.fetch.stored import stored_values
from tests.fetch.tiny_gguf import HEAD, LAYERS, QKV, TOKENS, Tiny


def convert(tiny: Tiny, folder: Path, **options: Any) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Writes and converts a tiny model; gives the exact values and the config."""
    expected = tiny.write(folder / "tiny.gguf")
    (folder / "out").mkdir()
    convert_gguf(folder / "tiny.gguf", folder / "out", **options)
    return expected, json.loads((folder / "out" / "config.json").read_text())


def assert_same(folder: Path, expected: dict[str, NDArray[np.float32]], config: dict[str, Any]) -> None:
    values = stored_values(folder, config)
    assert values.keys() == expected.keys()
    for name, wanted in expected.items():
        np.testing.assert_array_equal(values[name], wanted, err_msg=name)


def assert_loads(folder: Path) -> None:
    model, tokenizer = load(str(folder))
    logits = model(mx.array([tokenizer.encode("hello the 12")]))
    assert logits.shape[-1] == len(TOKENS)
    assert mx.all(mx.isfinite(logits)).item()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_every_type_is_exact(tmp_path: Path, kind: str) -> None:
    expected, config = convert(Tiny(kind=kind), tmp_path)
    assert_same(tmp_path / "out", expected, config)
    assert_loads(tmp_path / "out")


@pytest.mark.parametrize(
    "tiny",
    [
        Tiny("llama", "Q4_1", tied=False),
        Tiny("llama", "Q8_0", biases=(*QKV, "attn_output")),
        Tiny("llama", "Q4_0", biases=("ffn_gate", "ffn_up", "ffn_down")),
        Tiny("qwen2", "Q4_1", biases=QKV, metadata={"tokenizer.ggml.pre": "qwen2"}),
        Tiny("qwen3", "Q4_0", tied=False, settings={"attention.key_length": HEAD, "attention.value_length": HEAD}),
    ],
    ids=lambda tiny: f"{tiny.arch}-{tiny.kind}-{len(tiny.biases)}",
)
def test_every_family_is_exact(tmp_path: Path, tiny: Tiny) -> None:
    expected, config = convert(tiny, tmp_path)
    assert_same(tmp_path / "out", expected, config)
    assert config["tie_word_embeddings"] is tiny.tied
    assert_loads(tmp_path / "out")


def test_mixed_bits_are_listed_by_path(tmp_path: Path) -> None:
    kinds = {"token_embd.weight": "Q8_0", "blk.1.ffn_down.weight": "Q8_0", "blk.0.attn_v.weight": "F16"}
    expected, config = convert(Tiny(kind="Q4_1", kinds=kinds), tmp_path)
    eight = {"group_size": 32, "bits": 8}
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": eight,
        "model.layers.1.mlp.down_proj": eight,
    }
    assert_same(tmp_path / "out", expected, config)
    assert_loads(tmp_path / "out")


def test_extreme_blocks_are_exact(tmp_path: Path) -> None:
    """Scales at float16's edges: subnormal, zero, negative, and the largest a bias allows."""
    import gguf

    from mlx_autoperfect.fetch.blocks import unpack
    from mlx_autoperfect.fetch.gguf import Tensor

    random = np.random.default_rng(3)
    for kind, header, bits, largest in (("Q4_0", 1, 4, 8180.0), ("Q8_0", 1, 8, 511.0), ("Q4_1", 2, 4, 60000.0)):
        edges = np.array([0.0, -0.0, 6e-8, -6e-8, 6e-5, largest, -largest], np.float16)
        heads = random.choice(edges, size=(64, header))
        codes = random.integers(0, 256, size=(64, 4 * bits), dtype=np.uint8)
        raw = np.concatenate([heads.view(np.uint8).reshape(64, -1), codes], axis=1)
        stored = unpack(Tensor("x", kind, (64, 32), raw))
        parts = [mx.array(stored.parts[name]) for name in ("weight", "scales", "biases")]
        values = mx.dequantize(parts[0], *(part.astype(mx.float32) for part in parts[1:]), group_size=32, bits=bits)
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(np.array(values), wanted, err_msg=kind)


def test_scale_without_a_bias_is_refused(tmp_path: Path) -> None:
    from mlx_autoperfect.fetch.blocks import unpack
    from mlx_autoperfect.fetch.gguf import Tensor

    raw = np.concatenate([np.array([600.0], np.float16).view(np.uint8), np.zeros(32, np.uint8)])[None]
    with pytest.raises(ModelError, match="too large"):
        unpack(Tensor("x", "Q8_0", (1, 32), raw))


def test_vectors_follow_the_weights_only_when_exact(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, exact = convert(Tiny(kind="Q4_1"), tmp_path / "a")
    expected, inexact = convert(Tiny(kind="Q4_1", vectors=lambda values: values / 3), tmp_path / "b")
    assert (exact["torch_dtype"], inexact["torch_dtype"]) == ("float16", "float32")
    assert mx.load(str(tmp_path / "a/out/model.safetensors"))["model.norm.weight"].dtype == mx.float16
    assert mx.load(str(tmp_path / "b/out/model.safetensors"))["model.norm.weight"].dtype == mx.float32
    assert_same(tmp_path / "b/out", expected, inexact)


def test_large_models_are_sharded(tmp_path: Path) -> None:
    expected, config = convert(Tiny(kind="Q8_0"), tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (tmp_path / "out/model.safetensors").exists()
    assert_same(tmp_path / "out", expected, config)
    assert_loads(tmp_path / "out")


def test_config_keeps_the_numbers_of_the_metadata(tmp_path: Path) -> None:
    _, config = convert(Tiny(settings={"vocab_size": len(TOKENS), "expert_count": 0}), tmp_path)
    assert config["rms_norm_eps"] == 1e-5
    assert config["num_hidden_layers"] == LAYERS
    assert config["vocab_size"] == len(TOKENS)
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 2]


LLAMA3_BASE = {"rope.freq_base": 500000.0}


def llama3_divisors() -> NDArray[np.float32]:
    """Llama 3's rotary divisors for the tiny head, from mlx-lm's own implementation."""
    from mlx_lm.models.rope_utils import initialize_rope

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = initialize_rope(HEAD, 500000.0, False, {**scaling, "original_max_position_embeddings": 8192})
    plain = 500000.0 ** (np.arange(0, HEAD, 2) / HEAD)
    return (np.array(scaled._freqs) / plain).astype(np.float32)


def test_llama3_scaling_is_recovered(tmp_path: Path) -> None:
    tiny = Tiny(settings=LLAMA3_BASE, extra={"rope_freqs.weight": llama3_divisors()})
    _, config = convert(tiny, tmp_path)
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["rope_scaling"]["factor"] == pytest.approx(32.0, rel=1e-6)
    assert_loads(tmp_path / "out")


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    _, config = convert(Tiny(settings={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}), tmp_path)
    assert config["rope_scaling"]["factor"] == 4.0
    assert_loads(tmp_path / "out")


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (Tiny("gemma"), "architecture 'gemma'; llama, qwen2, qwen3"),
        (Tiny(settings={"expert_count": 8}), "llama.expert_count = 8"),
        (Tiny(settings={"attention.sliding_window": 128}), "llama.attention.sliding_window"),
        (Tiny(settings={"rope.dimension_count": 8}), "rope.dimension_count is 8 but heads are 16 wide"),
        (Tiny(settings={"rope.scaling.type": "yarn"}), "scales RoPE by 'yarn'"),
        (Tiny(settings={"attention.head_count": 0}), "attention.head_count must be one positive whole number"),
        (Tiny(settings={"attention.layer_norm_rms_epsilon": 0.0}), "must be one positive number"),
        (Tiny(settings=LLAMA3_BASE, extra={"rope_freqs.weight": llama3_divisors() * 1.001}), "not llama 3's"),
        (Tiny(extra={"rope_freqs.weight": llama3_divisors()}), "not llama 3's"),
        (Tiny(settings={"feed_forward_length": 128}), r"ffn_gate.weight has the shape \(96, 64\)"),
        (Tiny(leave_out=("blk.1.ffn_up.weight",)), "lacks the tensor blk.1.ffn_up.weight"),
        (Tiny(leave_out=("token_embd.weight",)), "lacks the tensor token_embd.weight"),
        (Tiny(biases=("attn_q",)), "lacks the tensor blk.0.attn_k.bias"),
        (Tiny("qwen3", biases=("attn_q",)), "does not use: blk.0.attn_q.bias"),
        (Tiny("qwen2"), "lacks the tensor blk.0.attn_q.bias"),
        (Tiny(kind="Q4_1", kinds={"blk.0.ffn_up.weight": "Q5_0"}), r"blk.0.ffn_up.weight \(Q5_0\).*F32, F16, Q4_0"),
        (Tiny(extra={"blk.0.ffn_gate_exps.weight": np.zeros((2, 4), np.float32)}), "does not use: blk.0.ffn_gate_exps"),
        (Tiny(metadata={"tokenizer.ggml.eos_token_id": 9999}), "9999 as eos"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_cannot_be_exact_is_refused(tmp_path: Path, tiny: Tiny, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convert(tiny, tmp_path)
