"""The nano tokenizer and text encoder: byte-level BPE on the world's captions, and a small UMT5 encoder.

Bytes are the alphabet, so that any prompt can be written in tokens, though only the world's words mean something.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.world.materials import PATTERN_WORDS
from pipeline.world.objects import MOTIONS, SHAPES
from pipeline.world.textures import COLOURS

VOCABULARY = 1024
TEXT_TOKENS = 64
TEXT_CONFIG: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=128,
    d_kv=32,
    num_heads=4,
    d_ff=256,
    num_layers=3,
    dropout_rate=0.0,
    pad_token_id=0,
    eos_token_id=1,
)


def train_tokenizer(captions: list[str], folder: Path) -> None:
    """Write a fast tokenizer for `captions` (and single words of the world) into `folder`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [*COLOURS, *SHAPES, *MOTIONS.values(), *(w.strip() for w in PATTERN_WORDS.values())]
    tokenizer.train_from_iterator(captions + words * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_TOKENS
    )
    fast.save_pretrained(folder)
