"""Reads a model's sizes and constants from GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.architectures import ARCHITECTURES, TOKEN_EMBEDDING, Architecture
from mlx_autoperfect.fetch.gguf import GgufFile

_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
}
_IRRELEVANT = {"rope.scaling.finetuned", "tensor_data_layout"}
_NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
}


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers of one model, in MLX's meaning.

    Attributes:
        layers: number of blocks.
        hidden: width of the residual stream.
        inner: width of the feed-forward layer.
        heads: query heads.
        kv_heads: key and value heads.
        head: width of one head.
        vocabulary: rows of the embedding.
        context: longest sequence it was trained for, in tokens.
        norm_eps: RMSNorm's epsilon.
        rope_theta: base of the rotary frequencies.
        rope_type: ``rope.scaling.type``; ``none`` when absent.
        rope_factor: ``rope.scaling.factor``; 1 when absent.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    norm_eps: float
    rope_theta: float
    rope_type: str
    rope_factor: float

    def count(self, name: str) -> int:
        """The size of the dimension that ``architectures`` calls ``name``."""
        derived = {"queries": self.heads * self.head, "keys": self.kv_heads * self.head}
        return derived[name] if name in derived else int(getattr(self, name))

    def shape(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """The sizes of several named dimensions."""
        return tuple(self.count(name) for name in names)


def read_architecture(file: GgufFile) -> Architecture:
    """The family of a file.

    Raises:
        ModelError: the family is not one of ``ARCHITECTURES``.
    """
    name = file.metadata.get("general.architecture")
    family = ARCHITECTURES.get(str(name))
    if family is None:
        raise ModelError(
            f"{file.path} holds a model of the architecture {name!r}; {', '.join(ARCHITECTURES)} can be converted, "
            "so fetch a model of one of those"
        )
    return family


def read_hyperparameters(file: GgufFile, family: Architecture) -> Hyperparameters:
    """Reads and checks the numbers.

    Raises:
        ModelError: a key is missing, of the wrong kind, or says something that mlx-lm's model
            of this family cannot express.
    """
    prefix = f"{family.name}."
    values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    strange = [
        f"{prefix}{key} = {value!r}"
        for key, value in values.items()
        if key not in _READ | _IRRELEVANT and not (key in _NEUTRAL and _NEUTRAL[key] == value)
    ]
    if strange:
        raise ModelError(f"{file.path} says {strange[0]}, which cannot be expressed for mlx-lm; fetch another model")

    def whole(key: str, default: int | None = None) -> int:
        value = values.get(key, default)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{file.path}: {prefix}{key} must be one positive whole number, not {_short(value)}")
        return value

    def real(key: str, default: float | None = None) -> float:
        value = values.get(key, default)
        if not isinstance(value, float | int) or not value > 0:
            raise ModelError(f"{file.path}: {prefix}{key} must be one positive number, not {_short(value)}")
        return float(str(np.float32(value)))

    heads, hidden = whole("attention.head_count"), whole("embedding_length")
    head = whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole(key, head) != head:
            raise ModelError(f"{file.path}: {prefix}{key} is {values[key]} but heads are {head} wide; not supported")
    if not family.free_head and head * heads != hidden:
        raise ModelError(f"{file.path}: heads of {head} do not fill {hidden}, which mlx-lm's {family.name} needs")
    if TOKEN_EMBEDDING not in file.tensors:
        raise ModelError(f"{file.path} lacks the tensor {TOKEN_EMBEDDING}; download it again")
    return Hyperparameters(
        layers=whole("block_count"),
        hidden=hidden,
        inner=whole("feed_forward_length"),
        heads=heads,
        kv_heads=whole("attention.head_count_kv", heads),
        head=head,
        vocabulary=file.tensors[TOKEN_EMBEDDING].shape[0],
        context=whole("context_length"),
        norm_eps=real("attention.layer_norm_rms_epsilon"),
        rope_theta=real("rope.freq_base", 10000.0),
        rope_type=str(values.get("rope.scaling.type", "none")),
        rope_factor=real("rope.scaling.factor", 1.0),
    )


def _short(value: Any) -> str:
    return "missing" if value is None else "a list" if isinstance(value, list) else repr(value)
