import argparse

raise RuntimeError(f"cannot be imported, {argparse.__name__} or not")
