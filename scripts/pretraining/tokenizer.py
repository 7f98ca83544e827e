"""The embedded model's tokenizer: byte-level BPE in which every small number is one token."""

from __future__ import annotations

from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pretraining.corpus import documents

BOS, PAD = "<|endoftext|>", "<|pad|>"
# A number includes its sign and leading space (" -6"); an operator is separate (" -", " 8").
_WORDS = r" ?-?\d+| ?[^\W\d_]+| ?[^\s\w]|\s+|_+"


def train_tokenizer(vocab_size: int, seed: int, n_documents: int = 4000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the corpus.

    Args:
        vocab_size: number of entries, including the 256 bytes and two special tokens.
        seed: seed of the corpus.
        n_documents: number of documents on which pairs are counted.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Rare numbers get their own token too: each is listed as often as a common word occurs.
    numbers = [f" {n}" for n in range(-60, 121)] * 400
    corpus = [*islice(documents(seed), n_documents), *numbers]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=PAD
    )
