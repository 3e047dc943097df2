"""mlx-lm's command modules, by what the flag means in them. Imports nothing: the finder reads it."""

ANSWERING = frozenset(
    f"mlx_lm.{name}" for name in ("benchmark", "cache_prompt", "chat", "evaluate", "generate", "perplexity", "server")
)
"""Commands that load a model to run it: the flag patches what they load."""

SAVING = frozenset(
    f"mlx_lm.{name}"
    for name in (
        "convert",
        "fuse",
        "lora",
        "manage",
        "quant.awq",
        "quant.dwq",
        "quant.dynamic_quant",
        "quant.gptq",
        "share",
        "upload",
    )
)
"""Commands that write or train weights, or load none: the flag is accepted and has no effect."""

COMMANDS = ANSWERING | SAVING
LOADING_MODULE = "mlx_lm.utils"
LOADERS = ("load", "sharded_load", "load_model")
