"""The text form of a graph: printed for people, parsed back without loss (comments aside).

graph model.layers.*
  in    %h: f16[1,L,576]
  par   %w0: f16[576] @ input_layernorm.weight
  par   %w1: w:q4g32.f16[576,576] @ self_attn.q_proj (weight scales biases)
  const %c0: f32[] = 2.0
  %1: f16[1,L,576] = rms_norm(%h, %w0) {eps=1e-05}        # nn.RMSNorm input_layernorm
  out %1
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, get_type_hints

from mlx_autoperfect.dtypes import DType, dtype_from_text
from mlx_autoperfect.graph.graph import Constant, Graph, Node, Param
from mlx_autoperfect.graph.ops import OPS, Op
from mlx_autoperfect.graph.types import Dim, Size, parse_dim, parse_type


def attribute_text(value: Any) -> str:
    """The text of one attribute; floats keep every bit (``repr``)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "(" + " ".join(attribute_text(part) for part in value) + ")"
    return repr(value) if isinstance(value, float) else str(value)


def op_text(op: Op, inputs: tuple[str, ...]) -> str:
    """``name(inputs) {attributes}``."""
    attributes = ", ".join(f"{f.name}={attribute_text(getattr(op, f.name))}" for f in fields(op))
    return f"{op.name}({', '.join('%' + value for value in inputs)})" + (f" {{{attributes}}}" if attributes else "")


def print_graph(graph: Graph, *, comments: bool = True) -> str:
    """The graph as text; ``comments`` adds where each node came from."""
    lines = [f"graph {graph.name}"]
    lines += [f"  in    %{value}: {type_}" for value, type_ in graph.inputs]
    for p in graph.params:
        parts = f" ({' '.join(p.parts)})" if p.parts else ""
        lines.append(f"  par   %{p.value}: {p.type} @ {p.path}{parts}")
    for c in graph.constants:
        lines.append(f"  const %{c.value}: {c.type} = {' '.join(map(repr, c.data))}")
    for node in graph.nodes:
        results = ", ".join(f"%{value}: {type_}" for value, type_ in zip(node.outputs, node.types, strict=True))
        line = f"  {results} = {op_text(node.op, node.inputs)}"
        lines.append(f"{line:<76}# {node.origin}" if comments and node.origin else line)
    lines.append("  out " + ", ".join(f"%{value}" for value in graph.outputs))
    return "\n".join(lines) + "\n"


_PARSERS: dict[Any, Any] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text],
    DType: dtype_from_text,
    Dim: parse_dim,
}


def _parse_attribute(hint: Any, text: str) -> Any:
    arguments = getattr(hint, "__args__", ())
    if arguments and arguments[-1] is Ellipsis:
        inner = text[1:-1].split()
        return tuple(_parse_attribute(arguments[0], part) for part in inner)
    if hint == (int | Size):
        return parse_dim(text)
    return _PARSERS[hint](text)


def parse_op(name: str, attributes: str) -> Op:
    """Reads ``eps=1e-05, ...`` for the op called ``name``."""
    cls = OPS[name]
    hints = get_type_hints(cls)
    pairs = (part.split("=", 1) for part in attributes.split(", ") if part)
    return cls(**{key: _parse_attribute(hints[key], text) for key, text in pairs})


_NODE = re.compile(r"(?P<results>%.*?) = (?P<op>\w+)\((?P<inputs>[^)]*)\)(?: \{(?P<attributes>.*)\})?")
_RESULT = re.compile(r"%(\w+): (\S+?\[[^\]]*\])")


def _values(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lstrip("%") for part in text.split(",") if part.strip())


def parse_graph(text: str) -> Graph:
    """Reads the text form.

    Raises:
        ValueError: a line that is none of the forms above; names the line.
    """
    name = ""
    inputs: list[tuple[str, Any]] = []
    params: list[Param] = []
    constants: list[Constant] = []
    nodes: list[Node] = []
    outputs: tuple[str, ...] = ()
    for number, raw in enumerate(text.splitlines(), 1):
        line, _, origin = raw.partition("  # ") if "  # " in raw else (raw, "", "")
        line = re.sub(r"\s*# .*$", "", line).strip() if not origin else line.strip()
        word, _, rest = line.partition(" ")
        try:
            if not line:
                continue
            if word == "graph":
                name = rest
            elif word == "in":
                value, type_ = rest.strip().lstrip("%").split(": ")
                inputs.append((value, parse_type(type_)))
            elif word == "par":
                head, path = rest.strip().lstrip("%").split(" @ ")
                value, type_ = head.split(": ")
                path, _, parts = path.partition(" (")
                params.append(Param(value, parse_type(type_), path, tuple(parts.rstrip(")").split())))
            elif word == "const":
                head, data = rest.strip().lstrip("%").split(" = ")
                value, type_ = head.split(": ")
                parsed = parse_type(type_)
                shape = tuple(int(str(dim)) for dim in parsed.shape)
                constants.append(Constant(value, parsed, tuple(map(float, data.split())), shape))
            elif word == "out":
                outputs = _values(rest)
            else:
                nodes.append(_parse_node(line, origin.strip()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of the graph's text, {raw.strip()!r}: {error}") from error
    return Graph(name, tuple(inputs), tuple(params), tuple(constants), tuple(nodes), outputs)


def _parse_node(line: str, origin: str) -> Node:
    match = _NODE.fullmatch(line)
    if match is None:
        raise ValueError("not a graph line")
    results = _RESULT.findall(match["results"])
    return Node(
        parse_op(match["op"], match["attributes"] or ""),
        _values(match["inputs"]),
        tuple(value for value, _ in results),
        tuple(parse_type(type_) for _, type_ in results),
        origin,
    )
