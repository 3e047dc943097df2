import argparse
import json

from .utils import load


def convert(path):
    return load(path, lazy=True)[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    print(json.dumps({"patched": convert(args.model).patched}))
