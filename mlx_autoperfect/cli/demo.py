"""``mlx-autoperfect demo``: the same prompt with stock mlx-lm and with autoperfect, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_autoperfect.errors import AutoperfectError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.console import Console
    from rich.table import Table

    from mlx_autoperfect.device import Bandwidth

MODEL = "smollm2-135m"
PROMPT = "What is the capital of France?"
# What is being waited for after an event.
_NEXT = {"loaded": "reading the prompt", "answer": "timing a longer answer"}
STOCK_TOKENS, ANSWER_TOKENS, MEASURED_TOKENS = 8, 64, 100


class DemoError(AutoperfectError):
    """A step of the demo failed."""


@dataclass(frozen=True)
class Run:
    """What one process reported.

    Attributes:
        loaded: how long loading took, bytes of weights per token, what was patched.
        answer: the answer to the prompt, with mlx-lm's own figures.
        speed: the figures to compare: those of ``answer``, or of a longer answer where one was generated.
    """

    loaded: dict[str, Any]
    answer: dict[str, Any]
    speed: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """The part of the result file that is about this run."""
        return {
            "load_s": self.loaded["load_s"],
            "prompt_tps": self.answer["prompt_tps"],
            "generation_tps": self.speed["generation_tps"],
            "peak_memory_gb": self.answer["peak_memory_gb"],
            "text": self.answer["text"],
        }


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to a parser's subcommands."""
    parser = subparsers.add_parser(
        "demo",
        help="the same prompt with stock mlx-lm and with autoperfect, side by side",
        description="Fetches a small model, answers a prompt with stock mlx-lm and with autoperfect, and compares.",
    )
    parser.add_argument("--model", metavar="MODEL", help=f"a model folder; default: {MODEL}, fetched if need be")
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path(".demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--stock-tokens", type=int, default=STOCK_TOKENS, metavar="N", help="stock stops here; default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=int, default=MEASURED_TOKENS, metavar="N", help="timed with autoperfect; default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0; 1 when the two answers differ.

    Raises:
        AutoperfectError: the model cannot be fetched or loaded, kernels cannot be made, a process failed.
    """
    from rich.console import Console

    from mlx_autoperfect.device import probe_bandwidth, usable_cores
    from mlx_autoperfect.settings import Settings

    settings = Settings.from_env()
    console = Console(highlight=False, soft_wrap=True)
    model = _model_folder(args.model, console)
    first = _prepare(model, console)
    speed = probe_bandwidth(settings.threads or usable_cores())

    console.print(f"[bold]stock mlx-lm[/] (slow on a CPU, so it stops after {args.stock_tokens} tokens)")
    stock = _answer(model, args.prompt, on=False, tokens=args.stock_tokens, measure=0, console=console)
    console.print("[bold]mlx-lm with autoperfect[/]")
    patched = _answer(model, args.prompt, on=True, tokens=ANSWER_TOKENS, measure=args.tokens, console=console)
    if not patched.loaded["patched"]:
        raise DemoError("the model was not patched; `mlx-autoperfect doctor` says why")

    result = result_of(stock, patched, speed)
    target = args.output / "result.json"
    _write(target, result)
    console.print(_table(stock, patched, result, speed, first))
    for line in _notes(stock, patched, result):
        console.print(line, markup=False)
    console.print(f"the same figures are in {target}", markup=False)
    return 0 if same_beginning(stock.answer["ids"], patched.answer["ids"]) else 1


def result_of(stock: Run, patched: Run, speed: Sequence[Bandwidth]) -> dict[str, Any]:
    """The content of ``result.json``. ``read_gb_s`` is at the smaller size: about what the model's weights are."""
    before, after = stock.record(), patched.record()
    return {
        "stock": before,
        "patched": after,
        "ratio_generation": after["generation_tps"] / before["generation_tps"],
        "ratio_prompt": after["prompt_tps"] / before["prompt_tps"],
        "weights_gb_s": after["generation_tps"] * patched.loaded["weight_bytes"] / 1e9,
        "read_gb_s": speed[0].gb_s,
        "kernels_verified": patched.loaded["verified"],
        "kernels_rejected": patched.loaded["rejected"],
    }


def same_beginning(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether the shorter answer is how the longer one begins, token by token."""
    count = min(len(first), len(second))
    return list(first[:count]) == list(second[:count])


def _model_folder(name: str | None, console: Console) -> str:
    from mlx_autoperfect.cli.loading import resolve_model
    from mlx_autoperfect.fetch import smollm2_folder

    console.print("[bold]the model[/]")
    return str(smollm2_folder()) if name is None else resolve_model(name)


def _prepare(model: str, console: Console) -> float:
    """Builds and verifies what is not stored yet, so that the timed start finds it; seconds."""
    from mlx_autoperfect.api import analyze
    from mlx_autoperfect.cli.loading import load_lazily
    from mlx_autoperfect.cli.screen import pipeline_progress

    console.print("[bold]kernels[/] (the first start on a machine compiles and verifies them)")
    start = time.perf_counter()
    with pipeline_progress("kernels") as progress:
        analyze(load_lazily(model), progress=progress)
    seconds = time.perf_counter() - start
    console.print(f"ready after {seconds:.1f} s")
    return seconds


def _answer(model: str, prompt: str, *, on: bool, tokens: int, measure: int, console: Console) -> Run:
    """Starts ``cli/answer.py`` with autoperfect on or off and shows the text as it comes."""
    words = [sys.executable, "-m", "mlx_autoperfect.cli.answer", model, prompt]
    words += ["--max-tokens", str(tokens), "--measure-tokens", str(measure)]
    environment = {**os.environ, "AUTOPERFECT": "1" if on else "0"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            events = _follow(process.stdout or (), console)
        except BaseException:
            process.terminate()
            raise
    if process.returncode or "answer" not in events:
        raise DemoError(f"generating with AUTOPERFECT={environment['AUTOPERFECT']} failed; its message is above")
    return Run(events["loaded"], events["answer"], events.get("measured", events["answer"]))


def _follow(lines: Iterable[str], console: Console) -> dict[str, dict[str, Any]]:
    """Reads the events of a process to its end, and shows text and what is being waited for."""
    events: dict[str, dict[str, Any]] = {}
    with console.status("loading") as waiting:
        for line in lines:
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "token":
                waiting.stop()
                console.print(event["text"], end="", markup=False)
                continue
            events[kind] = event
            if kind in _NEXT:
                console.print(end="\n" if kind == "answer" else "")
                waiting.update(_NEXT[kind])
                waiting.start()
    return events


def _write(target: Path, result: dict[str, Any]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise DemoError(f"cannot write {target}: {error.strerror}; choose another folder with --output") from None


def _table(stock: Run, patched: Run, result: dict[str, Any], speed: Sequence[Bandwidth], first: float) -> Table:
    from rich.table import Table

    before, after = result["stock"], result["patched"]
    table = Table("", "stock", "autoperfect", "ratio", box=None)

    def row(name: str, key: str, ratio: str = "", form: str = ".2f") -> None:
        table.add_row(name, f"{before[key]:{form}}", f"{after[key]:{form}}", ratio)

    row("load, s", "load_s")
    row("prompt, tokens/s", "prompt_tps", f"{result['ratio_prompt']:.0f}x")
    row("generation, tokens/s", "generation_tps", f"{result['ratio_generation']:.0f}x")
    row("peak of MLX's arrays, GB", "peak_memory_gb", form=".3f")
    resident = (stock.answer["resident_gb"], patched.answer["resident_gb"])
    table.add_row("peak of the process, GB", *(f"{size:.3f}" for size in resident))
    rates = [run.record()["generation_tps"] * run.loaded["weight_bytes"] / 1e9 for run in (stock, patched)]
    table.add_row("weights read, GB/s", *(f"{rate:.2f}" for rate in rates))
    for each in speed:
        table.add_row(f"machine reads {each.size >> 20} MiB, GB/s", "", f"{each.gb_s:.2f}")
    table.add_row("compiling and verifying, first start, s", "", f"{first:.2f}")
    return table


def _notes(stock: Run, patched: Run, result: dict[str, Any]) -> list[str]:
    ids = (stock.answer["ids"], patched.answer["ids"])
    count = min(map(len, ids))
    same = f"the first {count} tokens are the same" if same_beginning(*ids) else "THE ANSWERS DIFFER"
    return [
        f"answers: {same}",
        f"fused: {', '.join(patched.loaded['regions'])}",
        f"verified: {result['kernels_verified']} kernels against float64, {result['kernels_rejected']} rejected",
        f"speeds are mlx-lm's own: prompt of {stock.answer['prompt_tokens']} tokens; generation over "
        f"{stock.speed['generation_tokens']} tokens (stock) and {patched.speed['generation_tokens']} (autoperfect)",
    ]
