"""Decides which GGUF tensor becomes which MLX parameter, and checks that none is missing or left over."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.architectures import OUTER, OUTPUT_HEAD, ROPE_FACTORS, Architecture, Module
from mlx_autoperfect.fetch.gguf import GgufFile, Tensor
from mlx_autoperfect.fetch.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Move:
    """One tensor on its way.

    Attributes:
        tensor: the GGUF tensor.
        path: the MLX module that takes it, ``model.layers.0.mlp.up_proj``.
        suffix: ``weight`` or ``bias``.
        unpair: number of heads whose rows must be put back in order, or 0.
    """

    tensor: Tensor
    path: str
    suffix: str
    unpair: int = 0


@dataclass(frozen=True)
class Plan:
    """Every move, and the switches of ``config.json`` that follow from which tensors exist."""

    moves: tuple[Move, ...]
    switches: dict[str, bool]


def plan_moves(file: GgufFile, family: Architecture, params: Hyperparameters) -> Plan:
    """Pairs every tensor of the file with its MLX parameter.

    Raises:
        ModelError: a tensor is missing, unknown, or of an unexpected shape.
    """
    left = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
    moves: list[Move] = []

    def take(module: Module, gguf: str, mlx: str, suffix: str) -> None:
        name = f"{gguf}{module.gguf}.{suffix}"
        tensor = left.pop(name, None)
        if tensor is None:
            raise ModelError(f"{file.path} lacks the tensor {name} of a {family.name} model; download it again")
        expected = params.shape(module.shape if suffix == "weight" else module.shape[:1])
        if tensor.shape != expected:
            raise ModelError(
                f"{file.path}: {name} has the shape {tensor.shape} where its metadata implies {expected}; "
                "convert the model to GGUF again"
            )
        unpair = params.count(module.heads) if family.paired_rows and module.heads else 0
        moves.append(Move(tensor, f"{mlx}{module.mlx}", suffix, unpair))

    switches = {"tie_word_embeddings": OUTPUT_HEAD not in file.tensors}
    for module in OUTER:
        if f"{module.gguf}.weight" != OUTPUT_HEAD or not switches["tie_word_embeddings"]:
            take(module, "", "", "weight")
    biased = list(family.biased)
    for key, group in family.optional_biases:
        switches[key] = any(f"blk.0.{module.gguf}.bias" in left for module in group)
        biased += group if switches[key] else ()
    for layer in range(params.layers):
        for suffix, modules in (("weight", family.block), ("bias", biased)):
            for module in modules:
                take(module, f"blk.{layer}.", f"model.layers.{layer}.", suffix)
    if left:
        raise ModelError(
            f"{file.path} has tensors that mlx-lm's {family.name} model does not use: {', '.join(sorted(left)[:3])} "
            f"({len(left)} in all); a model of this variant cannot be converted"
        )
    return Plan(tuple(moves), switches)
