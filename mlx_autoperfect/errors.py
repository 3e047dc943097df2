"""Failures as values, and the few exceptions that mean misuse.

A candidate that cannot be captured, fused, built or verified is a :class:`Failure`: it carries a
reason code, the stage, the shapes and the schedule, and is reported by ``explain``. Exceptions are
for a caller's mistake (a bad option, a missing file) and carry one sentence that says what is
wrong, where, and what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The steps of the pipeline, in order."""

    SETUP = "setup"
    CAPTURE = "capture"
    CANONICALIZE = "canonicalize"
    PARTITION = "partition"
    LOWER = "lower"
    RENDER = "render"
    BUILD = "build"
    VERIFY = "verify"
    MEASURE = "measure"
    STORE = "store"
    DISPATCH = "dispatch"


class Reason(StrEnum):
    """Why something was refused. The value is what a person reads; codes are stable."""

    # setup
    NO_COMPILER = "NO_COMPILER"
    NO_HEADERS = "NO_HEADERS"
    NO_BACKEND = "NO_BACKEND"
    BAD_SETTING = "BAD_SETTING"
    DISABLED = "DISABLED"
    CACHE_UNWRITABLE = "CACHE_UNWRITABLE"
    # capture
    NO_BLOCKS = "NO_BLOCKS"
    NOT_TRACEABLE = "NOT_TRACEABLE"
    UNSUPPORTED_PRIMITIVE = "UNSUPPORTED_PRIMITIVE"
    UNSUPPORTED_CACHE = "UNSUPPORTED_CACHE"
    SHAPE_NOT_SYMBOLIC = "SHAPE_NOT_SYMBOLIC"
    NOT_REPRODUCED = "NOT_REPRODUCED"
    # partition: may we
    EFFECT_BARRIER = "EFFECT_BARRIER"
    MULTI_CONSUMER = "MULTI_CONSUMER"
    REDUCTION_BOUNDARY = "REDUCTION_BOUNDARY"
    SHAPE_MISMATCH = "SHAPE_MISMATCH"
    DTYPE_RULE = "DTYPE_RULE"
    FORMAT_MISMATCH = "FORMAT_MISMATCH"
    ANCHOR_CONFLICT = "ANCHOR_CONFLICT"
    WOULD_CYCLE = "WOULD_CYCLE"
    OPAQUE = "OPAQUE"
    # partition: should we
    NO_GAIN = "NO_GAIN"
    FOOTPRINT = "FOOTPRINT"
    OUT_OF_FUEL = "OUT_OF_FUEL"
    # lower, render
    UNSUPPORTED_OP = "UNSUPPORTED_OP"
    UNSUPPORTED_FORMAT = "UNSUPPORTED_FORMAT"
    UNSUPPORTED_LAYOUT = "UNSUPPORTED_LAYOUT"
    # build
    COMPILE_ERROR = "COMPILE_ERROR"
    COMPILE_TIMEOUT = "COMPILE_TIMEOUT"
    LOAD_ERROR = "LOAD_ERROR"
    # verify
    NUMERIC_MISMATCH = "NUMERIC_MISMATCH"
    NON_FINITE = "NON_FINITE"
    UNWRITTEN_OUTPUT = "UNWRITTEN_OUTPUT"
    OUT_OF_BOUNDS = "OUT_OF_BOUNDS"
    INPUT_MODIFIED = "INPUT_MODIFIED"
    NON_DETERMINISTIC = "NON_DETERMINISTIC"
    NOT_JUDGED = "NOT_JUDGED"
    CRASHED = "CRASHED"
    TIMED_OUT = "TIMED_OUT"
    # dispatch
    GUARD_MISS = "GUARD_MISS"
    RUNTIME_ERROR = "RUNTIME_ERROR"


@dataclass(frozen=True)
class Failure:
    """What went wrong with one candidate, as a value.

    Attributes:
        stage: the step that refused.
        reason: the stable code.
        detail: one sentence for a person.
        where: what it is about: a module path, a region or a kernel name.
        shapes: the shapes involved, as text; empty when they do not matter.
        schedule: the schedule involved, as text; empty before lowering.
    """

    stage: Stage
    reason: Reason
    detail: str
    where: str = ""
    shapes: str = ""
    schedule: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        tail = "".join(f" [{part}]" for part in (self.shapes, self.schedule) if part)
        return f"{head}{self.reason}: {self.detail}{tail}"


class AutoperfectError(Exception):
    """Base of the exceptions that this package raises on misuse."""


class SettingsError(AutoperfectError):
    """An option or an environment variable has a value that cannot be used."""


class UnavailableError(AutoperfectError):
    """Something this machine lacks; ``failure`` says which.

    Attributes:
        failure: the same fact as a value.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class ModelError(AutoperfectError):
    """A model folder or file that cannot be read."""
