"""Tokenizers made from GGUF metadata cut, encode and decode as the originals."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.tokenizer import build_tokenizer
from tests.fetch.tiny_gguf import MERGES, TOKEN_TYPES, TOKENS

WHERE = Path("tiny.gguf")
TRICKY = [
    "",
    " ",
    "hello the 1234",
    "  leading and trailing  ",
    "tabs\tand\nnew\r\nlines\n\n\n  x",
    "na\u00efve cafe\u0301 \u4f60\u597d \U0001f600\U0001f44d\U0001f3fd \u0661\u0662 \u00bd",
    "def foo(x):\n    return x**2  # it's WE'LL\n",
    "a\u00a0b\u200bc\u3000d\x00\x7f",
]


def byte_level(**changes: Any) -> dict[str, Any]:
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "token_type": TOKEN_TYPES,
        "merges": MERGES,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**metadata, **changes}.items()}


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
@pytest.mark.parametrize("text", TRICKY)
def test_byte_level_gives_the_text_back(pre: str, text: str) -> None:
    import unicodedata

    tokenizer = build_tokenizer(WHERE, byte_level(pre=pre))
    wanted = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
    assert tokenizer.decode(tokenizer.encode(text).ids) == wanted


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "in 1234", ["in", "\u0120", "1", "2", "3", "4"]),
        ("gpt-2", "in 1234", ["in", "\u01201234"]),
        ("qwen2", "in 1234", ["in", "\u0120", "1", "2", "3", "4"]),
        ("llama-bpe", "in 1234", ["in", "\u0120", "123", "4"]),
        ("smollm", "it's  WE'LL", ["it", "'s", "\u0120", "\u0120WE", "'", "LL"]),
        ("qwen2", "it's  WE'LL", ["it", "'s", "\u0120", "\u0120WE", "'LL"]),
        ("qwen2", "a\n\n  b", ["a", "\u010a\u010a", "\u0120", "\u0120b"]),
    ],
)
def test_text_is_cut_as_the_family_cuts_it(pre: str, text: str, pieces: list[str]) -> None:
    tokenizer = build_tokenizer(WHERE, byte_level(pre=pre))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_special_and_user_tokens_are_never_cut() -> None:
    tokenizer = build_tokenizer(WHERE, byte_level())
    encoded = tokenizer.encode("hello<|stop|> <tool>12")
    assert encoded.tokens == ["hello", "<|stop|>", "\u0120", "<tool>", "1", "2"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "hello <tool>12"


def test_whole_words_skip_the_merges_where_the_family_does() -> None:
    tokens = [*TOKENS, "the"]
    metadata = {"tokens": tokens, "token_type": [*TOKEN_TYPES, 1]}
    assert build_tokenizer(WHERE, byte_level(pre="llama-bpe", **metadata)).encode("the").tokens[1:] == ["the"]
    assert build_tokenizer(WHERE, byte_level(pre="smollm", **metadata)).encode("the").tokens == ["t", "he"]


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({}, (None, None)),
        ({"add_bos_token": True}, (0, None)),
        ({"add_bos_token": True, "add_eos_token": True}, (0, 1)),
        ({"add_eos_token": True}, (None, 1)),
        ({"pre": "llama-bpe"}, (0, None)),
        ({"pre": "llama-bpe", "add_bos_token": False}, (None, None)),
    ],
)
def test_ends_are_added_as_the_metadata_says(changes: dict[str, Any], ends: tuple[int | None, int | None]) -> None:
    tokenizer = build_tokenizer(WHERE, byte_level(**changes))
    plain = tokenizer.encode("hello", add_special_tokens=False).ids
    first, last = ([] if end is None else [end] for end in ends)
    assert tokenizer.encode("hello").ids == [*first, *plain, *last]


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_bpe_equals_sentencepiece(space_prefix: bool) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = Path(__file__).read_text(encoding="utf-8").replace("\\n", "\n").splitlines()
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=trained,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        add_dummy_prefix=space_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    original = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    # Shuffled, so that the merges follow the scores and not the order of the pieces.
    numbers = [0, 1, 2, *random.Random(5).sample(range(3, original.vocab_size()), original.vocab_size() - 3)]
    kinds = {0: 2, 1: 3, 2: 3}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(number) for number in numbers],
        "tokenizer.ggml.scores": [original.get_score(number) for number in numbers],
        "tokenizer.ggml.token_type": [6 if original.is_byte(number) else kinds.get(number, 1) for number in numbers],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": space_prefix,
    }
    tokenizer = build_tokenizer(WHERE, metadata)
    for sample in [*TRICKY[1:], *text]:
        if sample and "\x00" not in sample:
            mine = tokenizer.encode(sample, add_special_tokens=False)
            assert mine.tokens == original.encode(sample, out_type=str), sample
            assert tokenizer.decode(mine.ids) == sample
    assert tokenizer.encode("a").ids[0] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "kind 't5'; gpt2, llama"),
        ({"pre": "tekken"}, "'tekken' before its BPE; gpt-2, smollm"),
        ({"pre": None}, "splits text as None"),
        ({"tokens": None}, "no list of distinct tokens"),
        ({"tokens": [*TOKENS[:-1], "h"]}, "no list of distinct tokens"),
        ({"token_type": [1]}, "one token type for each"),
        ({"merges": ["q qqq"]}, "damaged vocabulary"),
        ({"merges": ["h e l"]}, "damaged vocabulary"),
        ({"model": "llama"}, "damaged vocabulary"),
        ({"add_bos_token": True, "bos_token_id": 100_000}, "100000 as bos"),
    ],
)
def test_unusable_vocabularies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_tokenizer(WHERE, byte_level(**changes))


def test_streamed_text_is_whole(tmp_path: Path) -> None:
    """mlx-lm picks its fast detokenizer from the decoder's form."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, load

    build_tokenizer(WHERE, byte_level()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = load(tmp_path)
    detokenizer = tokenizer.detokenizer
    assert isinstance(detokenizer, BPEStreamingDetokenizer)
    for number in tokenizer.encode(TRICKY[5]):
        detokenizer.add_token(number)
    detokenizer.finalize()
    assert detokenizer.text == TRICKY[5]
