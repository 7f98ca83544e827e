"""Small tokenizers of the kinds that language models come with, trained on a few lines when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = (
    "The cat sat on the mat. A dog ran, and the dog ran far!",
    'She said: "No." It\'s 17 of 42 - or 3.5?\nA new line\n\nand another one.',
    "the the cat cat dog dog  two spaces   three, four; five. naïve café “quoted” 日本",
) * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<s>", "</s>", "<unk>"]


def _finished(tokenizer: Tokenizer, trainer: Any, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **options,
    )


def _bpe_trainer(**options: Any) -> Any:
    return trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, show_progress=False, **options
    )


def byte_level(*, add_prefix_space: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # transformers sets the pre-tokenizer's option to its own.
    options = {"add_prefix_space": add_prefix_space}
    return _finished(tokenizer, _bpe_trainer(initial_alphabet=alphabet), **options)


def metaspace(scheme: str, *, split: bool = True, unigram: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    trainer = _bpe_trainer()
    if unigram:
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    return _finished(tokenizer, trainer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2: a space is put in front by the normalizer, what is not in the vocabulary is bytes."""
    learnt = metaspace("always").get_vocab()
    pieces = [
        p for p in sorted(learnt, key=learnt.get) if p.isascii() or p.replace("▁", "").isascii()
    ]
    pieces = [p for p in pieces if "\n" not in p and p not in SPECIAL]
    entries = {text: i for i, text in enumerate([*SPECIAL, *BYTES, *pieces])}
    merges = [
        (piece[:at], piece[at:])
        for piece in sorted(pieces, key=len)
        for at in range(1, len(piece))
        if piece[:at] in entries and piece[at:] in entries
    ]
    tokenizer = Tokenizer(models.BPE(entries, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def replacing() -> PreTrainedTokenizerFast:
    """As Gemma: spaces become ▁, and none is put in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _finished(tokenizer, _bpe_trainer())


def stripping() -> PreTrainedTokenizerFast:
    """White space at both ends of a text is dropped."""
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    return tokenizer


def lower_case() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: a word is its own beginning, so no text goes on within a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    return _finished(tokenizer, trainer)


# Those that can write any text of LINES in the middle of a string.
EXACT: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": lambda: byte_level(add_prefix_space=False),
    "byte_level_prefix_space": lambda: byte_level(add_prefix_space=True),
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_whole": lambda: metaspace("always", split=False),
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_never": lambda: metaspace("never"),
    "unigram_always": lambda: metaspace("always", unigram=True),
    "byte_fallback": byte_fallback,
    "replacing": replacing,
}
