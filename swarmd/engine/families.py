"""Which model families can be split, and the fixes that some of them need.

The only file that may name a family. Everything that can be found out by looking at the model
(`swarmd.engine.layout`) or by trying it (`swarmd.engine.probe`) is found there instead.
"""

from __future__ import annotations

from swarmd.core.errors import ModelError

_STREAMS = "several streams of hidden states run between its blocks"
_PER_BLOCK_EMBEDDINGS = "every block needs embeddings of the token ids, which only one node has"
_SHARED_BLOCK = "one attention block is shared by many others and sees the embeddings"
_ENCODER_DECODER = (
    "they are encoder-decoders, and every block of the decoder needs what the encoder made of the "
    "text; serve a decoder-only model instead, of the kind of Llama, Qwen or Mistral"
)
_OWN_STATE = "its blocks hand on a state of their own beside the hidden states"

UNSPLITTABLE: dict[str, str] = {
    "deepseek_v4": _STREAMS,
    "gemma3n": _PER_BLOCK_EMBEDDINGS,
    "gemma3n_text": _PER_BLOCK_EMBEDDINGS,
    "hy_v4": _STREAMS,
    "inkling2_text": "its checkpoint numbers the tensors of a block by the block after it",
    "openai-gpt": "it keeps no keys and values, so every token would cost the whole text again",
    "rwkv": _OWN_STATE,
    "xlm": "it keeps no keys and values, so every token would cost the whole text again",
    "xlnet": "it predicts in any order, not from left to right",
    "zamba": _SHARED_BLOCK,
    "zamba2": _SHARED_BLOCK,
}
"""Family (`model_type`) -> why its blocks cannot be served by different nodes.

Only what neither the layout nor a run without weights shows; all else is found there.
"""


def refuse_unsplittable(model_type: str, *, is_encoder_decoder: bool = False) -> None:
    """Raise ModelError when blocks of this family depend on more than the block before them."""
    reason = _ENCODER_DECODER if is_encoder_decoder else UNSPLITTABLE.get(model_type)
    if reason:
        raise ModelError(f"models of family {model_type!r} cannot be split into blocks: {reason}")
