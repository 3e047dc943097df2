"""One timed generation in a process of its own; prints one JSON object. Used by ``main_job.py``.

The prompt is a given number of token ids, generation never stops early: as ``mlx_lm.benchmark`` does it.
Whether autoperfect is on is decided by the environment.
"""

from __future__ import annotations

import argparse
import json
import resource
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--generate", type=int, default=96)
    parser.add_argument("--trials", type=int, default=2, help="the first one warms up, unless it is the only one")
    args = parser.parse_args()

    import mlx.core as mx
    from mlx_lm import load, stream_generate

    start = time.perf_counter()
    model, tokenizer = load(args.model)
    load_s = time.perf_counter() - start
    tokenizer._eos_token_ids = set()
    mx.random.seed(0)
    prompt = mx.random.randint(100, 20_000, (args.prompt_tokens,)).tolist()
    trials = []
    for _ in range(args.trials):
        tokens, last = [], None
        for last in stream_generate(model, tokenizer, prompt, max_tokens=args.generate):
            tokens.append(last.token)
        assert last is not None
        trials.append({"prompt_tps": last.prompt_tps, "generation_tps": last.generation_tps})
    print(
        json.dumps(
            {
                "load_s": load_s,
                "trials": trials[1:] or trials,
                "peak_memory_gb": mx.get_peak_memory() / 1e9,
                "resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
                "tokens": tokens[:32],
            }
        )
    )


if __name__ == "__main__":
    main()
