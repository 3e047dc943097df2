"""Writes tiny GGUF models with the reference writer, and says what their weights must become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

HIDDEN, INNER, HEADS, KV_HEADS, HEAD, LAYERS = 64, 96, 4, 2, 16, 2
QUERIES, KEYS = HEADS * HEAD, KV_HEADS * HEAD

BLOCK = {
    "attn_norm": ("input_layernorm", (HIDDEN,)),
    "ffn_norm": ("post_attention_layernorm", (HIDDEN,)),
    "attn_q": ("self_attn.q_proj", (QUERIES, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KEYS, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KEYS, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, QUERIES)),
    "ffn_gate": ("mlp.gate_proj", (INNER, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (INNER, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, INNER)),
}
QK_NORMS = {"attn_q_norm": ("self_attn.q_norm", (HEAD,)), "attn_k_norm": ("self_attn.k_norm", (HEAD,))}
QKV = ("attn_q", "attn_k", "attn_v")


def byte_alphabet() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


MERGES = ["h e", "l l", "he ll", "hell o", "\u0120 t", "\u0120t he", "1 2", "i n"]
SPECIALS = ["<|begin|>", "<|end|>", "<|stop|>"]
TOKENS = [*SPECIALS, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), "<tool>"]
TOKEN_TYPES = [3] * 3 + [1] * (256 + len(MERGES)) + [4]


@dataclass
class Tiny:
    """A model to write. ``kinds`` overrides the type of single tensors by their GGUF name."""

    arch: str = "llama"
    kind: str = "F16"
    kinds: dict[str, str] = field(default_factory=dict)
    tied: bool = True
    biases: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    vectors: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda values: np.round(values * 64) / 64

    def write(self, path: Path) -> dict[str, NDArray[np.float32]]:
        """Writes the file; returns every MLX parameter's exact values in float32."""
        random = np.random.default_rng(7)
        writer = gguf.GGUFWriter(path, self.arch)
        _write_metadata(writer, self)
        expected: dict[str, NDArray[np.float32]] = {}
        for name, target, shape, heads in self._tensors():
            values = random.normal(size=shape).astype(np.float32)
            vector = len(shape) == 1
            kind = self.kinds.get(name, "F32" if vector else self.kind)
            values = self.vectors(values).astype(np.float32) if vector else values
            expected[target] = _reread(values, kind)
            if name not in self.leave_out:
                _add(writer, name, _paired(values, heads) if heads and self.arch == "llama" else values, kind)
        for name, raw in self.extra.items():
            writer.add_tensor(name, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return expected

    def _tensors(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        vocabulary = len(TOKENS)
        found = [
            ("token_embd.weight", "model.embed_tokens.weight", (vocabulary, HIDDEN), 0),
            ("output_norm.weight", "model.norm.weight", (HIDDEN,), 0),
        ]
        if not self.tied:
            found.append(("output.weight", "lm_head.weight", (vocabulary, HIDDEN), 0))
        modules = {**BLOCK, **(QK_NORMS if self.arch == "qwen3" else {})}
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
        for layer in range(LAYERS):
            for module, (target, shape) in modules.items():
                where = (f"blk.{layer}.{module}", f"model.layers.{layer}.{target}")
                found.append((f"{where[0]}.weight", f"{where[1]}.weight", shape, heads.get(module, 0)))
                if module in self.biases:
                    found.append((f"{where[0]}.bias", f"{where[1]}.bias", shape[:1], heads.get(module, 0)))
        return found


def _write_metadata(writer: Any, tiny: Tiny) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    default: Mapping[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TOKEN_TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    settings = {f"{tiny.arch}.{key}": value for key, value in tiny.settings.items()}
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in {**default, **settings, **tiny.metadata}.items():
        if value is None:
            continue
        add = {str: writer.add_string, list: writer.add_array, **adders}[type(value)]
        add(key, value)


def _add(writer: Any, name: str, values: NDArray[np.float32], kind: str) -> None:
    if kind in ("F32", "F16"):
        writer.add_tensor(name, values.astype({"F32": np.float32, "F16": np.float16}[kind]))
    else:
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, number), raw_dtype=number)


def _reread(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    number = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(values, number), number).reshape(values.shape)


def _paired(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Row i of a head's first half, then row i of its second half, for every i."""
    paired = np.empty_like(values)
    head = values.shape[0] // heads
    for row in range(values.shape[0]):
        start, inside = row // head * head, row % head
        side, pair = divmod(inside, head // 2)
        paired[start + 2 * pair + side] = values[row]
    return paired
