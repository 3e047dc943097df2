"""Loading a model for the commands that look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.settings import Settings


def resolve_model(name: str) -> str:
    """What mlx-lm is to load: an existing folder, a fetched model's folder, or a repository on the hub.

    Raises:
        ModelError: ``name`` can only be a folder, and is none with a model in it.
    """
    folder = Path(name).expanduser()
    fetched = Settings.from_env().cache_dir / "models" / name
    if not folder.exists() and "/" not in name and fetched.is_dir():
        return str(fetched)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no config.json; give the folder of a model in mlx-lm's format")
        return str(folder)
    if folder.exists():
        raise ModelError(f"{folder} is a file; give the folder of a model, or convert a GGUF with fetch --gguf")
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ModelError(
            f"there is no model folder {name}; check the path, or fetch a known model: mlx-autoperfect fetch --list"
        )
    return name


def load_lazily(name: str) -> Any:
    """The model that mlx-lm makes of ``name``, its weights not read yet.

    Raises:
        ModelError: mlx-lm cannot load it; says why in one line.
    """
    path = resolve_model(name)
    from mlx_lm import load

    try:
        return load(path, lazy=True)[0]
    except Exception as error:  # whatever a damaged or unknown model makes mlx-lm raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"mlx-lm cannot load {path}: {text}") from None
