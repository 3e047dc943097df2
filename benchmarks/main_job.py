"""The main job, measured: stock mlx-lm, mlx-autoperfect and llama.cpp on the same weights and cores.

    python benchmarks/main_job.py --rounds 5 --out benchmarks/results

Rounds are interleaved: in each, every contestant runs once in a process of its own. Stock takes
seconds per token, so it gets few tokens and few rounds; rates per token are comparable all the same,
because its cost per token does not depend on their number at these lengths. The record holds every
raw sample.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_autoperfect.device import describe
from mlx_autoperfect.fetch import known_gguf, smollm2_folder

HERE = Path(__file__).parent
Sample = dict[str, Any]


def _run(model: Path, autoperfect: bool, threads: int, *options: str, cache: Path | None = None) -> Sample:
    environment = os.environ | {"AUTOPERFECT": str(int(autoperfect)), "AUTOPERFECT_THREADS": str(threads)}
    if cache is not None:
        environment["AUTOPERFECT_CACHE_DIR"] = str(cache)
    command = [sys.executable, str(HERE / "run_once.py"), str(model), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    return sample


def _median(samples: list[Sample], key: str) -> float:
    values = [trial[key] for sample in samples for trial in sample["trials"]]
    return statistics.median(values)


def bf16_folder(source: Path) -> Path:
    """The same weights as bfloat16, beside the quantised folder; made once."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import load_model

    target = source.with_name(source.name + "-bf16")
    if (target / "model.safetensors").exists():
        return target
    model, config = load_model(source)
    weights: dict[str, mx.array] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            weights[f"{path}.weight"] = mx.dequantize(
                module.weight, module.scales, module.biases, group_size=module.group_size, bits=module.bits
            )
        elif isinstance(module, nn.RMSNorm):
            weights[f"{path}.weight"] = module.weight
    weights = {name: array.astype(mx.bfloat16) for name, array in weights.items()}
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".json" and file.name != "config.json" and "index" not in file.name:
            shutil.copy(file, target)
    plain = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (target / "config.json").write_text(json.dumps(plain, indent=1))
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    return target


def _llama(gguf: Path, threads: int) -> Sample:
    from llama_cpp import measure

    return measure(gguf, threads, 128, 64, 1)


def interleaved(
    model: Path, gguf: Path | None, threads: int, rounds: int, stock_rounds: int
) -> dict[str, list[Sample]]:
    """Samples of every contestant."""
    found: dict[str, list[Sample]] = {"patched": [], "stock": [], "llama_cpp": []}
    _run(model, True, threads)
    for number in range(rounds):
        found["patched"].append(_run(model, True, threads))
        if gguf is not None:
            found["llama_cpp"].append(_llama(gguf, threads))
        if number < stock_rounds:
            options = ("--prompt-tokens", "9", "--generate", "3", "--trials", "1")
            found["stock"].append(_run(model, False, threads, *options))
        print(f"round {number + 1}/{rounds}", {k: v[-1] for k, v in found.items() if v}, file=sys.stderr)
    return found


def start_up(model: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds that loading takes: stock, patched with verdicts stored, patched with nothing stored."""
    options = ("--prompt-tokens", "4", "--generate", "1", "--trials", "1")
    stored, stock = [], []
    for _ in range(rounds):
        stored.append(_run(model, True, threads, *options)["load_s"])
        stock.append(_run(model, False, threads, "--prompt-tokens", "1", "--generate", "1", "--trials", "1")["load_s"])
    with tempfile.TemporaryDirectory() as empty:
        first = _run(model, True, threads, *options, cache=Path(empty))["load_s"]
    extra = statistics.median(stored) - statistics.median(stock)
    return {"stored_s": stored, "stock_s": stock, "first_s": first, "extra_stored_s": extra}


def accuracy(model: Path) -> dict[str, Any]:
    """Logits against float64."""
    from accuracy import measure
    from mlx_lm import load

    loaded, tokenizer = load(str(model))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)[-8:]
    found = measure(loaded, prompt, [504, 3575], lambda stage: print(stage, file=sys.stderr))
    return {name: asdict(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock-rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--no-llama-cpp", action="store_true")
    parser.add_argument("--no-bf16", action="store_true")
    args = parser.parse_args()

    folder = smollm2_folder()
    gguf = None if args.no_llama_cpp else known_gguf("smollm2-135m")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    record: dict[str, Any] = {
        "name": "main_job",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": asdict(describe()),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "mlx-autoperfect")},
        "threads": args.threads,
        "model": "SmolLM2-135M-Instruct, Q4_1 weights (output head Q8_0), float16 activations",
    }
    started = time.perf_counter()
    record["samples"] = interleaved(folder, gguf, args.threads, args.rounds, args.stock_rounds)
    record["start_up"] = start_up(folder, args.threads, 3)
    record["accuracy"] = accuracy(folder)
    if not args.no_bf16:
        record["bf16"] = interleaved(bf16_folder(folder), None, args.threads, args.rounds, args.stock_rounds)
    record["seconds"] = time.perf_counter() - started
    record["summary"] = summarize(record)
    record["tables"] = tables(record)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"main_job-{record['date'][:10]}-{args.threads}t.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["summary"], indent=1))
    print(path)


def summarize(record: dict[str, Any]) -> dict[str, float]:
    """The figures that the README's table is made of."""
    samples = record["samples"]
    patched, stock, llama = samples["patched"], samples["stock"], samples["llama_cpp"]
    found = {
        "decode_tps": _median(patched, "generation_tps"),
        "prefill_tps": _median(patched, "prompt_tps"),
        "stock_decode_tps": _median(stock, "generation_tps"),
        "stock_prefill_tps": _median(stock, "prompt_tps"),
    }
    found["decode_over_stock"] = found["decode_tps"] / found["stock_decode_tps"]
    found["prefill_over_stock"] = found["prefill_tps"] / found["stock_prefill_tps"]
    if llama:
        # The ratio of each round's neighbours: both saw the same machine.
        decode = [
            _median([p], "generation_tps") / q["generation_tps"]["median"] for p, q in zip(patched, llama, strict=True)
        ]
        prefill = [_median([p], "prompt_tps") / q["prompt_tps"]["median"] for p, q in zip(patched, llama, strict=True)]
        found["llama_cpp_decode_tps"] = statistics.median(q["generation_tps"]["median"] for q in llama)
        found["llama_cpp_prefill_tps"] = statistics.median(q["prompt_tps"]["median"] for q in llama)
        found["decode_over_llama_cpp"] = statistics.median(decode)
        found["prefill_over_llama_cpp"] = statistics.median(prefill)
    peaks = [statistics.median(s["peak_memory_gb"] for s in group) for group in (patched, stock)]
    found["peak_memory_over_stock"] = peaks[0] / peaks[1]
    found["extra_start_up_stored_s"] = record["start_up"]["extra_stored_s"]
    found["first_start_s"] = record["start_up"]["first_s"]
    found["logit_error_over_stock"] = record["accuracy"]["patched"]["worst"] / record["accuracy"]["stock"]["worst"]
    if "bf16" in record:
        bf16 = record["bf16"]
        found["bf16_decode_tps"] = _median(bf16["patched"], "generation_tps")
        found["bf16_decode_over_stock"] = found["bf16_decode_tps"] / _median(bf16["stock"], "generation_tps")
    return found


def tables(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the README shows of the record."""
    s = record["summary"]
    rows: list[list[Any]] = [
        ["decode, tokens/s", s["stock_decode_tps"], s["decode_tps"], f"{s['decode_over_stock']:.0f}x"],
        ["prompt, tokens/s", s["stock_prefill_tps"], s["prefill_tps"], f"{s['prefill_over_stock']:.0f}x"],
    ]
    if "bf16_decode_tps" in s:
        stock = s["bf16_decode_tps"] / s["bf16_decode_over_stock"]
        rows.append(["decode, bfloat16 weights", stock, s["bf16_decode_tps"], f"{s['bf16_decode_over_stock']:.1f}x"])
    accuracy = record["accuracy"]
    worst = [accuracy[name]["worst"] for name in ("stock", "patched")]
    rows.append(["largest logit error against float64", *worst, f"{worst[1] / worst[0]:.2f}x"])
    rows.append(["peak memory, GB", *_peaks(record), f"{s['peak_memory_over_stock']:.2f}x"])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    note = (
        f"{record['model']}; {record['device']['cpu']}, {record['threads']} threads; {versions}. "
        f"Loading takes {s['extra_start_up_stored_s']:.2f} s more than stock once verdicts are stored, "
        f"{s['first_start_s']:.0f} s the first time. "
    )
    if "decode_over_llama_cpp" in s:
        note += (
            f"In the same rounds llama.cpp's llama-bench, on the same weights and threads, decoded at "
            f"{s['llama_cpp_decode_tps']:.0f} and read prompts at {s['llama_cpp_prefill_tps']:.0f} tokens/s: "
            f"autoperfect is {s['decode_over_llama_cpp']:.2f}x and {s['prefill_over_llama_cpp']:.2f}x of that "
            "(medians of neighbouring runs; llama-bench does not sample). "
        )
    note += "Stock was given 9 prompt tokens and 3 to generate, because it takes seconds for each."
    columns = ["", "stock mlx-lm", "autoperfect", "ratio"]
    return [{"title": "The main job on two CPU cores", "columns": columns, "rows": rows, "note": note}]


def _peaks(record: dict[str, Any]) -> list[float]:
    samples = record["samples"]
    return [statistics.median(s["peak_memory_gb"] for s in samples[name]) for name in ("stock", "patched")]


if __name__ == "__main__":
    main()
