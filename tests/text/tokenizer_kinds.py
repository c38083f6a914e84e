"""Tokenizers of the kinds that models have, built here: no downloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "def main(argv):\n    return 0\n",
    "The quick brown fox doesn't jump over the lazy dog. ",
    "Grüße aus Köln, 東京 and Αθήνα! 🦊👩‍👩‍👧 naïve café\n",
    "  indented   text, with  spaces\tand tabs",
)
SPECIAL = ("<s>", "</s>", "<|im_end|>")


def byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.add_tokens(["é→", "<tool>"])  # added, not special, one of them outside the alphabet
    return backend


def _llama_like(stages: list[decoders.Decoder]) -> tokenizers.Tokenizer:
    pieces = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "▁▁", "▁the", "▁fox", "fox", "a", "b", "▁a", "<0x+A>", "é", "▁ende", "\n"]
    vocab = {piece: index for index, piece in enumerate(pieces + words)}
    merges = [("▁", "▁"), ("▁", "a")]
    model = models.BPE(
        vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(stages)
    backend.add_special_tokens([*SPECIAL, "<unk>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return backend


def llama() -> tokenizers.Tokenizer:
    return _llama_like(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def strips_two() -> tokenizers.Tokenizer:
    return _llama_like(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("▁", " "),
            decoders.Strip(" ", 2, 0),
        ]
    )


def strips_each_token() -> tokenizers.Tokenizer:
    return _llama_like([decoders.Strip("▁", 1, 0)])


def metaspace() -> tokenizers.Tokenizer:
    return _llama_like([decoders.ByteFallback(), decoders.Metaspace()])


def metaspace_never() -> tokenizers.Tokenizer:
    return _llama_like([decoders.Metaspace(prepend_scheme="never")])


def no_decoder() -> tokenizers.Tokenizer:
    backend = llama()
    backend.decoder = None
    return backend


def wordpiece() -> tokenizers.Tokenizer:
    words = [*SPECIAL, "[UNK]", "the", "##s", "fox", ".", "!", "'", "n't", "do not", "##é", "中"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(SPECIAL))
    return backend


def end_of_word() -> tokenizers.Tokenizer:
    pieces = [*SPECIAL, "<unk>", "th", "the</w>", "fox</w>", "s</w>", "a", "</w>"]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    )
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    backend.add_special_tokens([*SPECIAL, "<unk>"])
    return backend


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    make.__name__: make
    for make in (
        byte_level,
        llama,
        strips_two,
        strips_each_token,
        metaspace,
        metaspace_never,
        no_decoder,
        wordpiece,
        end_of_word,
    )
}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
