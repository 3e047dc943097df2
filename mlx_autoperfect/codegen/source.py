"""A rendered kernel: source text in one language, ready to build."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from mlx_autoperfect.kernel.ir import Kernel


@dataclass(frozen=True)
class Source:
    """Source of one kernel for one backend.

    Kernels that differ only in fixed sizes can have equal text; they are then compiled once.
    """

    backend: str
    kernel: Kernel
    text: str

    @cached_property
    def content_hash(self) -> str:
        return hashlib.sha256(f"{self.backend}\n{self.text}".encode()).hexdigest()
