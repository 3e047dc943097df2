"""A tiny model as a folder, and what the pipeline makes of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_autoperfect.api import analyze
from mlx_autoperfect.cli.main import main
from mlx_autoperfect.hookspecs import Backend
from mlx_autoperfect.pipeline import Analysis
from mlx_autoperfect.settings import Settings
from tests.models import Spec, build, profile

LETTERS = 257
CONFIG = {**profile("llama")["tiny"], "vocab_size": LETTERS}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs ``mlx-autoperfect`` in this process."""

    def run(*words: object) -> Done:
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def analysis(cpu: Backend, kernel_cache: Path) -> Analysis:
    """A tiny llama with 4-bit weights, all the way through the pipeline; nobody may change it."""
    return analyze(build(Spec()), Settings(cache_dir=kernel_cache))[0]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with 4-bit weights and a byte-level tokenizer, as mlx-lm loads it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {"<|end|>": 0}
    vocabulary |= {letter: n + 1 for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    assert len(vocabulary) == LETTERS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, "chat_template": template}))
    model = build(Spec(config=tuple(CONFIG.items())))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = {**CONFIG, "eos_token_id": 0, "quantization": {"bits": 4, "group_size": 32}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
