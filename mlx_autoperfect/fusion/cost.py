"""Should two groups become one kernel? Bytes and launches saved, against what has to fit."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_autoperfect.errors import Reason
from mlx_autoperfect.fusion.legality import Group, Refused
from mlx_autoperfect.fusion.views import readers
from mlx_autoperfect.graph.graph import Graph
from mlx_autoperfect.graph.types import ArrayType, Type, WeightType, evaluate

# Sizes assumed for symbols while the model is not running yet.
TYPICAL = {"L": 128, "T": 1024}
# A kernel holds one row of activations in float32 per worker; half of a small L2 is the cap.
_MAX_ROW_BYTES = 512 * 1024
_MAX_OPERANDS = 40


@dataclass(frozen=True)
class Saving:
    """What a fusion saves: kernel launches, and bytes of intermediate results written and read back."""

    launches: int
    traffic: int


def type_bytes(type_: Type) -> int:
    """Bytes of a value, with typical sizes for symbols."""
    count = 1
    for dim in type_.shape:
        count *= evaluate(dim, TYPICAL)
    if isinstance(type_, WeightType):
        return int(count * type_.format.bytes_per_weight())
    return count * type_.dtype.size


def _operands(graph: Graph, group: Group) -> int:
    values = {value for node in group.nodes for value in node.inputs}
    return sum(len(graph.param_of[v].parts) or 1 if v in graph.param_of else 1 for v in values)


def saving(graph: Graph, producer: Group, consumer: Group) -> Saving:
    """Intermediate values that only ``consumer`` reads are neither written nor read back."""
    traffic = 0
    inside = producer.ids | consumer.ids
    for node in producer.nodes:
        for value in node.outputs:
            found = readers(graph, value)
            if any(id(reader) in consumer.ids for reader, _ in found):
                stored = any(id(reader) not in inside for reader, _ in found)
                traffic += type_bytes(graph.types[value]) * (1 if stored else 2)
    return Saving(1, traffic)


def should_merge(graph: Graph, first: Group, second: Group) -> Refused | None:
    """``None`` when one kernel is expected to beat two."""
    operands = _operands(graph, first) + _operands(graph, second)
    if operands > _MAX_OPERANDS:
        return Refused(Reason.FOOTPRINT, f"{operands} operands; a kernel takes {_MAX_OPERANDS}")
    for node in (*first.nodes, *second.nodes):
        type_ = node.types[0]
        assert isinstance(type_, ArrayType)
        row = 4 * evaluate(type_.shape[-1], TYPICAL) if type_.shape else 4
        if node in first.nodes and row > _MAX_ROW_BYTES:
            return Refused(Reason.FOOTPRINT, f"a row of %{node.output} takes {row} bytes in float32")
    return None
