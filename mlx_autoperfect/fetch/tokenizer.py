"""Builds a Hugging Face tokenizer from the vocabulary in GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mlx_autoperfect.errors import ModelError

_SPACE = "\u2581"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _SIGNS, _BLANKS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"


class _Kind(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class _Splitter:
    """How text is cut before byte-level BPE: what ``tokenizer.ggml.pre`` names.

    Attributes:
        steps: makes the pre-tokenizer.
        compose: whether text is brought to Unicode's NFC first.
        whole_words: whether a piece that is itself a token skips the merges.
        begins: whether a text begins with the BOS token when the file does not say.
    """

    steps: Callable[[], Any]
    compose: bool = False
    whole_words: bool = False
    begins: bool = False


def _pattern(digits: str) -> Callable[[], Any]:
    expression = "|".join((_CONTRACTIONS, _WORD, digits, _SIGNS, _BLANKS))

    def make() -> Any:
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return make


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_LLAMA3 = _Splitter(_pattern(r"\p{N}{1,3}"), whole_words=True, begins=True)
SPLITTERS = {
    "gpt-2": _Splitter(_gpt2),
    "smollm": _Splitter(_single_digits),
    "qwen2": _Splitter(_pattern(r"\p{N}"), compose=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
}


def build_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Makes the tokenizer that the metadata describes.

    Supported: byte-level BPE (``gpt2``) cut as one of ``SPLITTERS``, and SentencePiece's BPE (``llama``).

    Args:
        path: the file, for messages.
        metadata: the file's metadata.

    Raises:
        ModelError: the vocabulary is missing, inconsistent, or of an unsupported kind.
    """
    kind = str(metadata.get("tokenizer.ggml.model"))
    if kind not in _BUILDERS:
        raise ModelError(f"{path} has a tokenizer of the kind {kind!r}; {', '.join(_BUILDERS)} can be converted")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        raise ModelError(f"{path} has no list of distinct tokens in its metadata; download it again")
    kinds = metadata.get("tokenizer.ggml.token_type", [_Kind.NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError(f"{path} does not have one token type for each of its {len(tokens)} tokens; download it again")
    try:
        tokenizer, begins = _BUILDERS[kind](path, metadata, tokens, kinds)
        tokenizer.add_tokens(
            [
                AddedToken(token, special=kind == _Kind.CONTROL, normalized=False)
                for token, kind in zip(tokens, kinds, strict=True)
                if kind in (_Kind.CONTROL, _Kind.USER_DEFINED)
            ]
        )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} has a damaged vocabulary: {error}; download it again") from None
    _add_ends(tokenizer, path, metadata, tokens, begins)
    return tokenizer


def special_token(path: Path, metadata: Mapping[str, Any], role: str) -> int | None:
    """The id of ``bos``, ``eos``, ``eot``, ``eom``, ``unknown`` or ``padding``; ``None`` when there is none.

    Raises:
        ModelError: the id is outside the vocabulary.
    """
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(metadata["tokenizer.ggml.tokens"]):
        raise ModelError(
            f"{path} names the token {number!r} as {role}, which is not in its vocabulary; convert it again"
        )
    return number


def _byte_level(path: Path, metadata: Mapping[str, Any], tokens: list[str], _: list[int]) -> tuple[Tokenizer, bool]:
    name = metadata.get("tokenizer.ggml.pre")
    splitter = SPLITTERS.get(str(name))
    if splitter is None:
        raise ModelError(
            f"{path} splits text as {name!r} before its BPE; {', '.join(SPLITTERS)} can be converted, "
            "so fetch a model that uses one of those"
        )
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitter.whole_words))
    if splitter.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter.steps()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitter.begins


def _sentencepiece(
    path: Path, metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> tuple[Tokenizer, bool]:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = special_token(path, metadata, "unknown")
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(tokens, kinds, metadata["tokenizer.ggml.scores"]),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(_SPACE)] if prefixed else []), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefixed else []),
        ]
    )
    return tokenizer, True


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece keeps a score per piece instead of merges: any two pieces may join into one of a better score."""
    joinable = {token: number for number, token in enumerate(tokens) if kinds[number] == _Kind.NORMAL}
    found = [
        (-scores[number], joinable[token[:cut]], joinable[token[cut:]])
        for token, number in joinable.items()
        for cut in range(1, len(token))
        if token[:cut] in joinable and token[cut:] in joinable
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _add_ends(tokenizer: Tokenizer, path: Path, metadata: Mapping[str, Any], tokens: list[str], begins: bool) -> None:
    bos, eos = special_token(path, metadata, "bos"), special_token(path, metadata, "eos")
    first = [bos] if metadata.get("tokenizer.ggml.add_bos_token", begins) and bos is not None else []
    last = [eos] if metadata.get("tokenizer.ggml.add_eos_token", False) and eos is not None else []
    if not first and not last:
        return
    names = {number: tokens[number] for number in first + last}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*(names[number] for number in first), "$A", *(names[number] for number in last)],
        pair=[
            *(names[number] for number in first),
            "$A",
            *(f"{names[number]}:1" for number in first),
            "$B:1",
            *(f"{names[number]}:1" for number in last),
        ],
        special_tokens=[(name, number) for number, name in names.items()],
    )
