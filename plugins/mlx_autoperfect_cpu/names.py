"""Names that the source of a ``cpu_kernel`` may use for its inputs, outputs and template arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlx_autoperfect_cpu.kernel_source import TYPES

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = frozenset({"thread_position_in_grid", "threads_per_grid", "uint3", *TYPES.values()})
_WORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const consteval constexpr constinit const_cast continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires return short signed sizeof static static_assert static_cast struct switch template this thread_local throw
    true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
"""
_KEYWORDS = frozenset(_WORDS.split())


def check_names(kernel: str, names: Sequence[str], own: bool = False) -> None:
    """Checks names that appear in C++; ``own`` when it is the kernel's own name, which meets no other.

    Raises:
        ValueError: a name is no identifier, is taken by the kernel's surroundings, or is used twice.
    """
    for i, name in enumerate(names):
        if not _IDENTIFIER.fullmatch(name) or name in _KEYWORDS or "__" in name:
            raise ValueError(f"cpu_kernel {kernel!r}: {name!r} is not an identifier of C++; choose another name")
        if not own and (name in _TAKEN or name.startswith("ap_")):
            raise ValueError(f"cpu_kernel {kernel!r}: the name {name!r} is taken; choose another name")
        if name in names[:i]:
            raise ValueError(f"cpu_kernel {kernel!r}: the name {name!r} is used twice")
