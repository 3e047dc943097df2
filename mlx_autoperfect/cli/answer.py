"""One answer of one model in a process of its own: what ``demo`` starts, once stock and once patched.

    python -m mlx_autoperfect.cli.answer MODEL PROMPT --max-tokens 8

Loads and generates as ``mlx_lm.generate`` does; whether autoperfect is on is the environment's affair
(``AUTOPERFECT=0`` or ``1``), so nothing of the core is imported here unless the start-up hook did it.
Prints one JSON object per line: ``loaded``, ``token`` for each piece of text, ``answer``, ``measured``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LONG_PROMPT = "Tell me a long story about a lighthouse and the people who lived in it."


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def _weights_per_token(model: Any) -> int:
    """Bytes of weights that one decoded token reads: all but an embedding that is not also the head."""
    from mlx.utils import tree_flatten

    arrays = tree_flatten(model.parameters())
    own_head = any(name.startswith("lm_head") for name, _ in arrays)
    return sum(a.nbytes for name, a in arrays if not (own_head and "embed_tokens" in name))


def _kernels(model: Any) -> Mapping[str, Any]:
    """What autoperfect did to the model, if it is here at all."""
    api = sys.modules.get("mlx_autoperfect.api")
    state = api.state_of(model) if api is not None else None
    if state is None:
        return {"patched": False, "verified": 0, "rejected": 0, "regions": []}
    from mlx_autoperfect.report import summarize

    report = summarize(state.analysis, state.forwards)
    blocks = [section for section in report.sections if section.role != "linear"]
    regions = {region.name: None for section in blocks for region in section.variants[0].regions if not region.why}
    return {"patched": True, "verified": report.verified, "rejected": report.rejected, "regions": list(regions)}


def _generate(model: Any, tokenizer: Any, prompt: str, tokens: int, show: Callable[[str], None]) -> dict[str, Any]:
    from mlx_lm import stream_generate

    messages = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    text, ids, last = "", [], None
    for last in stream_generate(model, tokenizer, encoded, max_tokens=tokens):
        text += last.text
        ids.append(last.token)
        show(last.text)
    assert last is not None
    return {
        "text": text,
        "ids": ids,
        "prompt_tokens": last.prompt_tokens,
        "prompt_tps": last.prompt_tps,
        "generation_tokens": last.generation_tokens,
        "generation_tps": last.generation_tps,
        "peak_memory_gb": last.peak_memory,
    }


def _resident_gb() -> float:
    """The largest resident size of the process so far.

    Linux's own high-water mark where there is one: what getrusage tells there starts with that of the parent.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--measure-tokens", type=int, default=0, help="also time a longer answer to another prompt")
    args = parser.parse_args()
    from mlx_lm import load

    start = time.perf_counter()
    model, tokenizer = load(args.model)[:2]
    load_s = time.perf_counter() - start
    _say("loaded", load_s=load_s, weight_bytes=_weights_per_token(model), **_kernels(model))
    answer = _generate(model, tokenizer, args.prompt, args.max_tokens, lambda text: _say("token", text=text))
    _say("answer", resident_gb=_resident_gb(), **answer)
    if args.measure_tokens:
        measured = _generate(model, tokenizer, LONG_PROMPT, args.measure_tokens, lambda _: None)
        _say("measured", **measured)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
