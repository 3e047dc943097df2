"""A core that fails halfway through a model."""

import sys


def optimize(model, *, settings=None, progress=None):
    model.patched = True
    raise RuntimeError("first line\nsecond line")


def restore(model):
    model.patched = False
    print("CORE restore", file=sys.stderr)
