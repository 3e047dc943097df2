"""Writes a GGUF model as an mlx-lm model folder, bit for bit the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.architectures import ROPE_FACTORS
from mlx_autoperfect.fetch.blocks import unpack
from mlx_autoperfect.fetch.config import generation_config, model_config, tokenizer_config
from mlx_autoperfect.fetch.gguf import read_gguf
from mlx_autoperfect.fetch.hyperparameters import read_architecture, read_hyperparameters
from mlx_autoperfect.fetch.jsonfile import write_json
from mlx_autoperfect.fetch.plan import plan_moves
from mlx_autoperfect.fetch.rope import rope_scaling
from mlx_autoperfect.fetch.tokenizer import build_tokenizer
from mlx_autoperfect.fetch.weights import SHARD_BYTES, vector_dtype, write_weights


@dataclass(frozen=True)
class Summary:
    """What a conversion wrote.

    Attributes:
        architecture: ``llama``, ``qwen2`` or ``qwen3``.
        layers: number of blocks.
        formats: how many tensors were stored in which format, ``{"4-bit": 210, "float16": 61}``.
        dtype: the dtype of the activations that follows from the weights.
        size: bytes of weights.
    """

    architecture: str
    layers: int
    formats: dict[str, int]
    dtype: str
    size: int

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} in {kind}" for kind, count in sorted(self.formats.items()))
        return (
            f"{self.architecture}, {self.layers} layers, {self.size / 1e6:.0f} MB; tensors: {kinds}; "
            f"activations in {self.dtype}"
        )


def convert_gguf(
    source: Path, folder: Path, advance: Callable[[int, int], None] | None = None, shard_bytes: int = SHARD_BYTES
) -> Summary:
    """Converts ``source`` into the existing empty ``folder``.

    Vectors stored as float32 are narrowed to the dtype of the weights only if all of them keep
    their exact values; otherwise they stay float32 and so do the activations.

    Args:
        source: the GGUF file.
        folder: where ``config.json``, ``model*.safetensors`` and the tokenizer's files go.
        advance: called with the bytes done and in all.
        shard_bytes: weights are split into files of about this many bytes.

    Raises:
        ModelError: the file cannot be converted without loss; says why.
    """
    file = read_gguf(source)
    family = read_architecture(file)
    params = read_hyperparameters(file, family)
    plan = plan_moves(file, family, params)
    factors = unpack(file.tensors[ROPE_FACTORS]).parts["weight"] if ROPE_FACTORS in file.tensors else None
    scaling = rope_scaling(source, params, factors)
    tokenizer = build_tokenizer(source, file.metadata)
    if tokenizer.get_vocab_size() > params.vocabulary:
        raise ModelError(
            f"{source} has more tokens than its embedding has rows ({params.vocabulary}); convert it to GGUF again"
        )
    dtype = vector_dtype(file, plan)
    written = write_weights(plan, folder, dtype, shard_bytes, advance)
    config = model_config(file, family, params, plan.switches, scaling, written.bits, dtype)
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", tokenizer_config(file, params))
    write_json(folder / "generation_config.json", generation_config(file))
    tokenizer.save(str(folder / "tokenizer.json"))
    return Summary(family.name, params.layers, written.formats, dtype, written.size)
