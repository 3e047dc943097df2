"""The model families that can be converted: tensor names and shapes, as data.

GGUF's and MLX's names of one module stand side by side. Shapes are written in the letters of
``Dimensions``: a module's weight is ``(rows, columns)``, its bias ``(rows,)``.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT_HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Module:
    """One module of a model.

    Attributes:
        gguf: its name in GGUF, inside ``blk.<layer>`` for a block's module.
        mlx: its path in MLX, inside ``model.layers.<layer>`` for a block's module.
        shape: the names of the dimensions of its weight.
        heads: the dimension whose heads' rows llama's GGUF stores pairwise, or empty.
    """

    gguf: str
    mlx: str
    shape: tuple[str, ...]
    heads: str = ""


_NORMS = (
    Module("attn_norm", "input_layernorm", ("hidden",)),
    Module("ffn_norm", "post_attention_layernorm", ("hidden",)),
)
_ATTENTION = (
    Module("attn_q", "self_attn.q_proj", ("queries", "hidden"), "heads"),
    Module("attn_k", "self_attn.k_proj", ("keys", "hidden"), "kv_heads"),
    Module("attn_v", "self_attn.v_proj", ("keys", "hidden")),
)
_ATTENTION_OUT = (Module("attn_output", "self_attn.o_proj", ("hidden", "queries")),)
_MLP = (
    Module("ffn_gate", "mlp.gate_proj", ("inner", "hidden")),
    Module("ffn_up", "mlp.up_proj", ("inner", "hidden")),
    Module("ffn_down", "mlp.down_proj", ("hidden", "inner")),
)
_QK_NORMS = (
    Module("attn_q_norm", "self_attn.q_norm", ("head",)),
    Module("attn_k_norm", "self_attn.k_norm", ("head",)),
)
OUTER = (
    Module("token_embd", "model.embed_tokens", ("vocabulary", "hidden")),
    Module("output_norm", "model.norm", ("hidden",)),
    Module("output", "lm_head", ("vocabulary", "hidden")),
)


@dataclass(frozen=True)
class Architecture:
    """One family.

    Attributes:
        name: ``general.architecture`` in GGUF, and ``model_type`` in MLX.
        model_class: the class that ``config.json`` names.
        block: the modules of one layer; each has a weight.
        biased: modules that always have a bias.
        optional_biases: config key -> modules that have a bias together or not at all.
        paired_rows: whether q and k rows are stored pairwise, as the traditional RoPE wants them.
            GGUF's row ``2 i + j`` of a head is row ``j * (head / 2) + i`` for MLX.
        free_head: whether mlx-lm's model takes a head width other than ``hidden / heads``.
    """

    name: str
    model_class: str
    block: tuple[Module, ...]
    biased: tuple[Module, ...] = ()
    optional_biases: tuple[tuple[str, tuple[Module, ...]], ...] = ()
    paired_rows: bool = False
    free_head: bool = True


_BLOCK = (*_NORMS, *_ATTENTION, *_ATTENTION_OUT, *_MLP)

ARCHITECTURES = {
    family.name: family
    for family in (
        Architecture(
            "llama",
            "LlamaForCausalLM",
            _BLOCK,
            optional_biases=(("attention_bias", (*_ATTENTION, *_ATTENTION_OUT)), ("mlp_bias", _MLP)),
            paired_rows=True,
        ),
        Architecture("qwen2", "Qwen2ForCausalLM", _BLOCK, biased=_ATTENTION, free_head=False),
        Architecture("qwen3", "Qwen3ForCausalLM", (*_BLOCK, *_QK_NORMS)),
    )
}
