"""The SSA graph: types, ops, text form, checks and the two interpreters."""
