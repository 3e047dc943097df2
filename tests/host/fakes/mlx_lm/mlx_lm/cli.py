import importlib
import sys


def main():
    command = sys.argv.pop(1)
    importlib.import_module(f"mlx_lm.{command}").main()
