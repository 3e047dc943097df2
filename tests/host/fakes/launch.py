"""``mlx-autoperfect run`` with the real launcher and a core that only records."""

import sys

import mlx_autoperfect
from mlx_autoperfect.cli.run import run


def optimize(model, progress=None):
    print(f"CORE optimize {type(model).__name__}", file=sys.stderr)
    model.patched = True
    return model


mlx_autoperfect.optimize = optimize
sys.exit(run(sys.argv[1:]))
