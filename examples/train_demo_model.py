"""Train the small demo model that ships in ``swarmd/demo_model``.

Collects the Python standard library's sources found beside the running interpreter, trains a
byte-level BPE and a Llama on them within a wall-clock budget, and writes the ordinary Hugging Face
layout. Serving the model, and judging what it writes, are left to others.

    python examples/train_demo_model.py --minutes 55 --threads 1 --compiled

Every checkpoint replaces the files in ``--out`` one by one, so a run may be stopped at any time
and leaves a model that loads.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import sysconfig
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

Tokens = npt.NDArray[np.uint16]

BOS, EOS, TURN_START, TURN_END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [BOS, EOS, TURN_START, TURN_END]

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Character tables and generated reference text: many tokens, no programming in them.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
TEST_FOLDERS = {"test", "tests", "idle_test"}
LONGEST_FILE = 300_000  # bytes; beyond it a file is a table
HELD_OUT_SHARE = 0.04  # of the library's files

# A document of the function view ends after the function that takes it past this length.
FUNCTION_DOCUMENT_CHARS = 1500

# How often a batch row comes from each part of the corpus.
MIXTURE = {"library": 0.45, "functions": 0.28, "chat": 0.07, "tests": 0.20}

ROPE_THETA = 10_000.0

DECAY_SHARE = 0.6
WARMUP_STEPS = 50
QUICK_WINDOWS = 32  # of the held-out files, in the validation before a checkpoint


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run does."""

    out: Path
    cache: Path
    minutes: float
    threads: int
    batch: int
    context: int
    matrix_rate: float
    vector_rate: float
    weight_decay: float
    checkpoint_minutes: float
    compiled: bool
    seed: int


@dataclass
class Progress:
    """What a run has done so far; the model card is written from it."""

    tokens: int = 0
    steps: int = 0
    minutes: float = 0.0
    train_loss: float = float("nan")
    validation: list[tuple[int, float]] = field(default_factory=list)


def main() -> None:
    recipe = parse_arguments()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    corpus = collect_corpus(Path(sysconfig.get_path("stdlib")))
    tokenizer = train_tokenizer(corpus["library"])
    arrays = {name: tokenise(name, texts, tokenizer, recipe) for name, texts in corpus.items()}
    model = LlamaForCausalLM(model_config(tokenizer))
    # On a CPU the fused kernel's backward pass takes longer than all matrices together.
    model.set_attn_implementation("eager")
    train(model, tokenizer, arrays, recipe)


# --- corpus -----------------------------------------------------------------------------------


def collect_corpus(root: Path) -> dict[str, list[str]]:
    """The documents of each part: whole files, their functions one by one, chats, tests."""
    corpus: dict[str, list[str]] = {name: [] for name in (*MIXTURE, "held_out")}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        text = read_source(path) if SKIPPED_FOLDERS.isdisjoint(relative.parts) else None
        if text is None:
            continue
        if not TEST_FOLDERS.isdisjoint(relative.parts):
            corpus["tests"].append(text)
        elif is_held_out(relative):
            corpus["held_out"].append(text)
        else:
            functions = list(functions_of(text))
            corpus["library"].append(text)
            corpus["functions"].extend(join_functions(functions))
            corpus["chat"].extend(as_chat(function) for function in functions)
    return corpus


def read_source(path: Path) -> str | None:
    """A file's text, or None where it is empty, a table, or broken on purpose by a test."""
    if not 0 < path.stat().st_size < LONGEST_FILE:
        return None
    try:
        text = path.read_text(encoding="utf-8").expandtabs(8)
        ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
        return None
    return text


def is_held_out(relative: Path) -> bool:
    """Chosen by name, so that every run and every machine holds out the same files."""
    digest = hashlib.sha256(relative.as_posix().encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def functions_of(text: str) -> Iterator[str]:
    """Every function and method as a text of its own that starts in the first column."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or node.end_lineno is None:
            continue
        function = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).rstrip()
        if function.startswith("def ") and function.count("\n") > 1 and parses(function):
            yield function


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:  # dedent stops at a string with less indentation than its function
        return False
    return True


def join_functions(functions: list[str]) -> Iterator[str]:
    """Documents that start with ``def``, as the demo's prompts do."""
    document = ""
    for function in functions:
        document += function + "\n\n\n"
        if len(document) > FUNCTION_DOCUMENT_CHARS:
            yield document.rstrip() + "\n"
            document = ""
    if document:
        yield document.rstrip() + "\n"


def as_chat(function: str) -> str:
    """One question and answer in the chat template's form."""
    node = ast.parse(function).body[0]
    assert isinstance(node, ast.FunctionDef)
    summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
    request = f"Write the function {node.name}."
    question = f"{request} {summary}".strip()
    return f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n{function}{TURN_END}\n"


# --- tokens -----------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE. A run of spaces gives its last one to the following word, so a prompt
    that ends in white space asks for a token that was never seen there."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def tokenise(name: str, texts: list[str], tokenizer: Tokenizer, recipe: Recipe) -> Tokens:
    """One part's documents, each between BOS and EOS, as an array mapped from the cache."""
    recipe.cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(tokenizer.to_str().encode() + "\0".join(texts).encode()).hexdigest()[:16]
    path = recipe.cache / f"{name}-{key}.npy"
    if not path.exists():
        eos = tokenizer.token_to_id(EOS)
        encoded = tokenizer.encode_batch(texts)
        tokens = np.concatenate([np.array([*one.ids, eos], dtype=np.uint16) for one in encoded])
        np.save(path, tokens)
    array: Tokens = np.load(path, mmap_mode="r")
    print(f"corpus part={name} documents={len(texts)} tokens={len(array)}", flush=True)
    return array


def draw_batch(
    arrays: dict[str, Tokens], recipe: Recipe, random: np.random.Generator
) -> torch.Tensor:
    """Rows at random places of randomly chosen parts, [batch, context + 1]."""
    names = random.choice(list(MIXTURE), size=recipe.batch, p=list(MIXTURE.values()))
    rows = []
    for name in names:
        start = int(random.integers(len(arrays[name]) - recipe.context - 1))
        rows.append(arrays[name][start : start + recipe.context + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# --- model and training -----------------------------------------------------------------------


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        use_cache=True,
    )


def train(
    model: LlamaForCausalLM, tokenizer: Tokenizer, arrays: dict[str, Tokens], recipe: Recipe
) -> None:
    """Steps until the wall-clock budget is spent; a checkpoint first, in between and last."""
    optimizers = make_optimizers(model, recipe)
    loss_of = make_loss(model, compiled=recipe.compiled)
    random = np.random.default_rng(recipe.seed)
    progress = Progress()
    save(model, tokenizer, arrays, progress, recipe)
    started = saved = time.monotonic()
    while (share := (time.monotonic() - started) / (60 * recipe.minutes)) < 1:
        set_rates(optimizers, rate_factor(share, progress.steps))
        batch = draw_batch(arrays, recipe, random)
        loss = loss_of(batch)
        torch.autograd.backward(loss)
        step(optimizers)
        record(progress, loss.item(), batch.shape[0] * recipe.context, started)
        if time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
            progress.validation.append(
                (progress.tokens, validate(model, arrays, recipe, windows=QUICK_WINDOWS))
            )
            save(model, tokenizer, arrays, progress, recipe)
            saved = time.monotonic()
    progress.validation.append((progress.tokens, validate(model, arrays, recipe, windows=None)))
    save(model, tokenizer, arrays, progress, recipe)


def make_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def make_loss(model: LlamaForCausalLM, *, compiled: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Next-token loss in bf16 autocast: twice as fast as fp32 on a CPU that has bf16."""

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten()
        )

    return torch.compile(loss_of) if compiled else loss_of


def rate_factor(share: float, steps: int) -> float:
    """Short warm-up, plateau, then linear decay over the last 60 % of the budget."""
    return min(1.0, (steps + 1) / WARMUP_STEPS, max(0.01, (1 - share) / DECAY_SHARE))


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor


def step(optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def record(progress: Progress, loss: float, tokens: int, started: float) -> None:
    progress.steps += 1
    progress.tokens += tokens
    progress.minutes = (time.monotonic() - started) / 60
    smooth = loss if progress.steps == 1 else progress.train_loss
    progress.train_loss = 0.98 * smooth + 0.02 * loss
    if progress.steps % 50 == 0:
        print(
            f"train step={progress.steps} tokens={progress.tokens} "
            f"minutes={progress.minutes:.1f} loss={progress.train_loss:.3f}",
            flush=True,
        )


@torch.no_grad()
def validate(
    model: LlamaForCausalLM, arrays: dict[str, Tokens], recipe: Recipe, windows: int | None
) -> float:
    """Mean loss over evenly spaced windows of the held-out files, or over all of them."""
    held_out, width = arrays["held_out"], recipe.context
    starts = np.arange(0, len(held_out) - width - 1, width)
    if windows is not None:
        starts = starts[:: max(1, len(starts) // windows)][:windows]
    loss_of = make_loss(model, compiled=False)
    losses = []
    for first in range(0, len(starts), recipe.batch):
        rows = [held_out[s : s + width + 1] for s in starts[first : first + recipe.batch]]
        batch = torch.from_numpy(np.stack(rows).astype(np.int64))
        losses.append((loss_of(batch).item(), len(rows)))
    loss = sum(value * rows for value, rows in losses) / sum(rows for _, rows in losses)
    print(f"validate windows={len(starts)} loss={loss:.4f}", flush=True)
    return loss


# --- files ------------------------------------------------------------------------------------


def save(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    arrays: dict[str, Tokens],
    progress: Progress,
    recipe: Recipe,
) -> None:
    """The Hugging Face layout in bf16, each file replaced in one step."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    weights = recipe.out / ".model.safetensors.new"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    os.replace(weights, recipe.out / "model.safetensors")
    write_text(recipe.out / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_json(recipe.out / "config.json", config_file(model.config))
    write_json(recipe.out / "generation_config.json", generation_file(tokenizer))
    write_json(recipe.out / "tokenizer_config.json", tokenizer_file())
    write_text(recipe.out / "README.md", model_card(model, arrays, progress, recipe))


def config_file(config: LlamaConfig) -> dict[str, object]:
    """What Llama checkpoints say of themselves, readable by older releases of transformers too."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": ROPE_THETA,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def generation_file(tokenizer: Tokenizer) -> dict[str, object]:
    return {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(EOS), tokenizer.token_to_id(TURN_END)],
        "pad_token_id": tokenizer.token_to_id(EOS),
        "do_sample": False,
    }


def tokenizer_file() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "additional_special_tokens": [TURN_START, TURN_END],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(path: Path, value: dict[str, object]) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def model_card(
    model: LlamaForCausalLM, arrays: dict[str, Tokens], progress: Progress, recipe: Recipe
) -> str:
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    parts = "\n".join(
        f"| {name} | {len(array):,} | {MIXTURE.get(name, 0):.0%} |"
        for name, array in arrays.items()
    )
    losses = "\n".join(f"| {tokens:,} | {loss:.3f} |" for tokens, loss in progress.validation)
    return f"""---
license: psf-2.0
language: code
pipeline_tag: text-generation
library_name: transformers
---

# swarmd demo model

A Llama of {parameters:,} parameters that continues Python source code. It exists so that a swarm
can be tried without a download: it has the shape of a real model, with many blocks, grouped-query
attention, a tokenizer and a chat template. It knows the form of Python and little of its meaning:
do not use it to write programs.

## Architecture

{config.num_hidden_layers} blocks, hidden size {config.hidden_size}, \
SwiGLU {config.intermediate_size}, {config.num_attention_heads} attention heads and \
{config.num_key_value_heads} key-value heads of {config.head_dim}, tied embeddings, byte-level BPE \
of {config.vocab_size} tokens, bf16 weights. Trained on windows of {recipe.context} tokens; \
positions go up to {config.max_position_embeddings}, but text beyond the first {recipe.context} \
gets worse.

## Data

The standard library of CPython {platform.python_version()}, without character tables and generated
text. About {HELD_OUT_SHARE:.0%} of the library's files are held out for validation.

| part | tokens | share of a batch |
|---|---|---|
{parts}

`functions` and `chat` are the library's functions again, each starting in the first column, the
latter as question and answer in the chat template's form.

## Recipe

`examples/train_demo_model.py --minutes {recipe.minutes:g} --threads {recipe.threads}\
{" --compiled" * recipe.compiled}`: \
{progress.tokens:,} tokens in {progress.steps:,} steps of {recipe.batch} x {recipe.context} and \
{progress.minutes:.0f} minutes. Muon for the matrices (rate {recipe.matrix_rate:g}, weight decay \
{recipe.weight_decay:g}), AdamW for the embedding and the norms (rate \
{recipe.vector_rate:g}), bf16 autocast, linear decay over the last {DECAY_SHARE:.0%} of the run.

Training loss at the end (moving average): {progress.train_loss:.3f}. Validation loss, on the way \
over {QUICK_WINDOWS} windows spread over the held-out files and in the last row over all of them:

| tokens seen | loss |
|---|---|
{losses}

## Use

A prompt must not end in white space: the tokenizer gives the last space of a run to the next word.
Greedy text soon goes in circles; a temperature of 0.5 to 0.8 reads better.

## Licence

Trained on nothing but the sources of the CPython standard library, which are under the Python
Software Foundation License Version 2; Copyright (c) 2001 Python Software Foundation; All Rights
Reserved. The weights may repeat passages of those sources and are distributed under the same
licence.
"""


def parse_arguments() -> Recipe:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("swarmd/demo_model"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/swarmd-demo-model"))
    parser.add_argument("--minutes", type=float, default=55.0, help="wall-clock budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="rows per step")
    parser.add_argument("--context", type=int, default=512, help="tokens per row")
    parser.add_argument("--matrix-rate", type=float, default=0.025, help="Muon's peak rate")
    parser.add_argument("--vector-rate", type=float, default=0.004, help="AdamW's peak rate")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of the matrices")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--compiled", action="store_true", help="use torch.compile")
    parser.add_argument("--seed", type=int, default=1)
    return Recipe(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
