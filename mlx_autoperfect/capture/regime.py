"""The regimes that are captured: one row at a time, or many rows under a causal mask."""

from __future__ import annotations

from dataclasses import dataclass

# Sizes of the two traces that are compared; primes, so that a product names its symbol.
_ROWS = (5, 7)
_KEYS = (11, 13)


@dataclass(frozen=True)
class Regime:
    """How a model is being run.

    Attributes:
        name: for people and for signatures.
        rows: rows of hidden state in the first and in the second trace; equal when fixed.
        keys: cached keys in the two traces.
    """

    name: str
    rows: tuple[int, int]
    keys: tuple[int, int] = _KEYS

    @property
    def symbols(self) -> dict[str, tuple[int, int]]:
        """The sizes that differ between the traces."""
        table = {"T": self.keys}
        if self.rows[0] != self.rows[1]:
            table["L"] = self.rows
        return table


DECODE = Regime("decode", (1, 1))
PREFILL = Regime("prefill", _ROWS)
REGIMES = (DECODE, PREFILL)
