"""Makes the JSON files of a model folder: config, generation config and tokenizer config."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mlx_autoperfect.fetch.architectures import Architecture
from mlx_autoperfect.fetch.blocks import GROUP_SIZE
from mlx_autoperfect.fetch.gguf import GgufFile
from mlx_autoperfect.fetch.hyperparameters import Hyperparameters
from mlx_autoperfect.fetch.tokenizer import special_token


def model_config(
    file: GgufFile,
    family: Architecture,
    params: Hyperparameters,
    switches: dict[str, bool],
    scaling: dict[str, Any] | None,
    bits: dict[str, int],
    dtype: str,
) -> dict[str, Any]:
    """``config.json``.

    Args:
        file: the GGUF file.
        family: its family.
        params: its numbers.
        switches: settings that follow from which tensors exist.
        scaling: ``rope_scaling``, or ``None``.
        bits: bits by the path of every quantised module. The most common number is the folder's;
            the others are listed by path, as mlx-lm reads them.
        dtype: the dtype of the activations.
    """
    config: dict[str, Any] = {
        "model_type": family.name,
        "architectures": [family.model_class],
        "hidden_size": params.hidden,
        "intermediate_size": params.inner,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "num_key_value_heads": params.kv_heads,
        "head_dim": params.head,
        "vocab_size": params.vocabulary,
        "max_position_embeddings": params.context,
        "rms_norm_eps": params.norm_eps,
        "rope_theta": params.rope_theta,
        "torch_dtype": dtype,
        **switches,
        **{f"{role}_token_id": special_token(file.path, file.metadata, role) for role in ("bos", "eos")},
    }
    if scaling is not None:
        config["rope_scaling"] = scaling
    if bits:
        usual = Counter(bits.values()).most_common(1)[0][0]
        others = {path: {"group_size": GROUP_SIZE, "bits": own} for path, own in bits.items() if own != usual}
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": usual, **others}
    return config


def tokenizer_config(file: GgufFile, params: Hyperparameters) -> dict[str, Any]:
    """``tokenizer_config.json``: the named special tokens and the chat template."""
    tokens = file.metadata["tokenizer.ggml.tokens"]
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {f"{name}_token": special_token(file.path, file.metadata, role) for name, role in roles.items()}
    template = file.metadata.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": params.context,
        **{name: tokens[number] for name, number in named.items() if number is not None},
        **({} if template is None else {"chat_template": template}),
    }


def generation_config(file: GgufFile) -> dict[str, Any]:
    """``generation_config.json``: the ids that start, pad and stop a text."""
    roles = {"bos": "bos", "pad": "padding"}
    named = {f"{name}_token_id": special_token(file.path, file.metadata, role) for name, role in roles.items()}
    stops = [special_token(file.path, file.metadata, role) for role in ("eos", "eot", "eom")]
    return {
        **{name: number for name, number in named.items() if number is not None},
        "eos_token_id": list(dict.fromkeys(number for number in stops if number is not None)),
    }
