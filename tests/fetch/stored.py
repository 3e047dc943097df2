"""Reads a model folder's weights back as float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def stored_values(folder: Path, config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Every parameter of a folder, dequantised in float32."""
    arrays: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        arrays |= mx.load(str(file))
    values = {}
    for name, array in arrays.items():
        path, _, suffix = name.rpartition(".")
        if suffix in ("scales", "biases"):
            continue
        if f"{path}.scales" in arrays and suffix == "weight":
            own = config["quantization"].get(path, config["quantization"])
            parts = [arrays[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
            array = mx.dequantize(array, *parts, group_size=own["group_size"], bits=own["bits"])
        values[name] = np.array(array.astype(mx.float32))
    return values
