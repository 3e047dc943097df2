import argparse
import json

from .utils import load


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    print(json.dumps({"args": vars(args), "patched": load(args.model)[0].patched}))


if __name__ == "__main__":
    main()
