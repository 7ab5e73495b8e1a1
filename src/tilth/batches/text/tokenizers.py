"""Tokenisers trained on one's own text, saved as ordinary transformers tokeniser folders.

Notable: training reads a stream, never the whole corpus at once; `bpe` works on bytes, so every text comes back
unchanged and nothing is unknown; sentinels stand at the top of the vocabulary, `<extra_id_0>` last, as in T5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt, method

BOS, EOS, PAD, MASK, UNK = "<s>", "</s>", "<pad>", "<mask>", "<unk>"


@method("tokenizer", "bpe")
class BPE:
    """Byte-level byte pair encoding: GPT-2's splitting into words, digits, punctuation and white space, then merges.

    vocab_size counts everything: 256 bytes, special tokens, sentinels and merges. It may come out smaller when fewer
    pairs occur `min_frequency` times. sentinels: how many `<extra_id_N>` tokens to add, for span corruption.
    """

    kind: ClassVar[str]

    def __init__(self, *, vocab_size: PositiveInt = 8192, min_frequency: PositiveInt = 2, sentinels: NonNegativeInt = 0) -> None:
        smallest = 256 + 4 + sentinels
        if vocab_size < smallest:
            raise TilthError(
                f"a vocabulary of {vocab_size} cannot hold 256 bytes, 4 special tokens and {sentinels} sentinels",
                where="tokenizer.bpe.vocab_size",
                hint=f"Set it to at least {smallest}.",
            )
        self.vocab_size, self.min_frequency, self.sentinels = vocab_size, min_frequency, sentinels

    def train(self, texts: Iterator[str]) -> PreTrainedTokenizerFast:
        """The tokeniser learnt from `texts`; the same texts give the same tokeniser, byte for byte."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - self.sentinels,
            min_frequency=self.min_frequency,
            special_tokens=[BOS, EOS, PAD, MASK],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return _finished(tokenizer, self.sentinels, unk=None)


@method("tokenizer", "word")
class Word:
    """Whole words: runs of letters, single digits, single punctuation marks; white space is not kept.

    For small closed worlds (the TOFU-mini bed of the unlearning protocol). vocab_size: the most frequent ones, special
    tokens included; None keeps every word that occurs `min_frequency` times. What is not kept becomes `<unk>`.
    """

    kind: ClassVar[str]

    def __init__(
        self, *, vocab_size: PositiveInt | None = None, min_frequency: PositiveInt = 1, sentinels: NonNegativeInt = 0
    ) -> None:
        if vocab_size is not None and vocab_size < 6 + sentinels:
            raise TilthError(
                f"a vocabulary of {vocab_size} cannot hold 5 special tokens, {sentinels} sentinels and a word",
                where="tokenizer.word.vocab_size",
                hint="Leave it out to keep every word.",
            )
        self.vocab_size, self.min_frequency, self.sentinels = vocab_size, min_frequency, sentinels

    def train(self, texts: Iterator[str]) -> PreTrainedTokenizerFast:
        """The tokeniser of the words in `texts`; ties in frequency are settled alphabetically."""
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        words = Regex(r"[\p{L}\p{M}]+|\p{N}|[^\s\p{L}\p{M}\p{N}]")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
        trainer = trainers.WordLevelTrainer(
            vocab_size=2**31 if self.vocab_size is None else self.vocab_size - self.sentinels,
            min_frequency=self.min_frequency,
            special_tokens=[BOS, EOS, PAD, MASK, UNK],
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return _finished(tokenizer, self.sentinels, unk=UNK)


def sentinel_names(count: int) -> list[str]:
    """T5's names, first sentinel first; the first has the highest id."""
    return [f"<extra_id_{number}>" for number in range(count)]


def _finished(tokenizer: Tokenizer, sentinels: int, unk: str | None) -> PreTrainedTokenizerFast:
    names = sentinel_names(sentinels)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in reversed(names)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        mask_token=MASK,
        unk_token=unk,
        extra_special_tokens=names,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
