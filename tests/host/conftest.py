"""Throwaway environments with this project installed, and a tiny model that real mlx-lm can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"
OURS = ("mlx_autoperfect", "_editable_impl_mlx_autoperfect", "__editable__.mlx_autoperfect")
_OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q")
PIP_FLAGS = {"install": _OFFLINE, "wheel": _OFFLINE, "uninstall": ("--yes", "-q")}


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        root: its folder.
        python: its interpreter.
        site: its site-packages.
    """

    root: Path
    python: Path
    site: Path

    def run(
        self,
        *argv: str | Path,
        fakes: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs this interpreter with the named folders of ``fakes/`` before everything else on its path."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOPERFECT", "PYTHON", "COVERAGE"))}
        variables |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1"}
        if fakes:
            variables["PYTHONPATH"] = os.pathsep.join(str(FAKES / name) for name in fakes)
        return subprocess.run(
            [str(self.python), *map(str, argv)],
            env={**variables, **(env or {})},
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def script(self, name: str, module: str) -> Path:
        """A console script as pip writes it, for a distribution that is only linked into this environment."""
        path = self.root / "bin" / name
        path.write_text(
            f"#!{self.python}\nimport sys\nfrom {module} import main\n"
            "if __name__ == '__main__':\n    sys.argv[0] = sys.argv[0].removesuffix('.exe')\n    sys.exit(main())\n"
        )
        return path

    def with_scripts(self) -> Environment:
        for command in ("generate", "lora", "server", "evaluate", "perplexity"):
            self.script(f"mlx_lm.{command}", f"mlx_lm.{command}")
        self.script("mlx_lm", "mlx_lm.cli")
        return self


def make_environment(root: Path, packages: Path | None = None) -> Environment:
    """An empty environment that also sees the folder ``packages``."""
    venv.create(root, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(root), "platbase": str(root)}))
    if packages is not None:
        (site / "deps.pth").write_text(f"{packages}\n")
    return Environment(root, root / "bin" / "python", site)


def unpack(wheel: Path, root: Path, packages: Path | None = None) -> Environment:
    """The wheel, unpacked without pip into an environment with nothing else, or that also sees ``packages``."""
    environment = make_environment(root, packages)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment.site)
    return environment


def run_pip(environment: Environment | None, command: str, *arguments: str | Path) -> None:
    """Runs the testing interpreter's pip, offline, on ``environment`` or on none."""
    target = [] if environment is None else ["--python", str(environment.python)]
    words = [sys.executable, "-m", "pip", *target, command, *PIP_FLAGS[command], *map(str, arguments)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything installed beside the running interpreter but this project, as one folder of links."""
    folder = tmp_path_factory.mktemp("packages")
    for site in (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")):
        for item in site.iterdir() if site.is_dir() else ():
            if not item.name.startswith(OURS) and item.suffix != ".pth" and not (folder / item.name).exists():
                (folder / item.name).symlink_to(item)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run_pip(None, "wheel", "-w", folder, PROJECT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, packages: Path, wheel: Path) -> Environment:
    """The wheel, installed by pip; nobody may change this environment."""
    environment = make_environment(tmp_path_factory.mktemp("installed") / "env", packages)
    run_pip(environment, "install", wheel)
    return environment.with_scripts()


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without this project, to compare with."""
    return make_environment(tmp_path_factory.mktemp("bare") / "env").with_scripts()


@pytest.fixture
def disposable(tmp_path: Path, wheel: Path) -> Environment:
    """The wheel in an environment that a test may damage."""
    return unpack(wheel, tmp_path / "env")


@pytest.fixture(scope="module")
def disposable_for_module(tmp_path_factory: pytest.TempPathFactory, wheel: Path, packages: Path) -> Environment:
    """The same with all that this project needs, shared by the tests of one file."""
    return unpack(wheel, tmp_path_factory.mktemp("module") / "env", packages)


@pytest.fixture
def fresh(tmp_path: Path, packages: Path) -> Environment:
    """An environment without this project that sees all the packages it needs."""
    return make_environment(tmp_path / "env", packages)


@pytest.fixture
def pip() -> Callable[..., None]:
    return run_pip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with random float32 weights and a byte-level tokenizer, as an mlx-lm folder."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny-llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|end|>"})
    )
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(vocabulary),
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 0, "architectures": ["LlamaForCausalLM"]}))
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
