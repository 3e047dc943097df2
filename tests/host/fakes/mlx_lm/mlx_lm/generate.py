import argparse
import json
import sys

from .utils import load


def setup_arg_parser():
    parser = argparse.ArgumentParser(description="LLM inference script")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--adapter-path")
    parser.add_argument("--draft-model")
    return parser


def generate(model, prompt):
    return f"{model.name} says {prompt}"


def main():
    args = setup_arg_parser().parse_args()
    model, _ = load(args.model, adapter_path=args.adapter_path)
    draft = load(args.draft_model)[0] if args.draft_model else None
    report = {
        "args": vars(args),
        "program": sys.argv[0],
        "patched": model.patched,
        "draft_patched": draft and draft.patched,
        "answer": generate(model, "hello"),
        "stock_load": load.__module__ == "mlx_lm.utils" and not hasattr(load, "__wrapped__"),
        "stock_argparse": sys.modules["argparse"].ArgumentParser.__init__.__module__ == "argparse",
        "ours": sorted(name for name in sys.modules if name.startswith("mlx_autoperfect")),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    print("Calling `python -m mlx_lm.generate...` directly is deprecated.", file=sys.stderr)
    main()
