"""Judge what the demo model writes: how often a function parses, and which prompts read best.

Loads a model directory with transformers and prints a Markdown section for its model card.
Training, and the validation loss, belong to ``train_demo_model.py``.

    python examples/judge_demo_model.py swarmd/demo_model >> swarmd/demo_model/README.md
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

PROMPTS = (
    "def fibonacci(n):",
    "def binary_search(items, target):",
    "def factorial(n):",
    "def is_prime(n):",
    "def read_file(path):",
    "def write_file(path, data):",
    "def find_files(directory, pattern):",
    "def parse_args(argv=None):",
    "def main():",
    "def main(args=None):",
    "def count_words(text):",
    "def reverse(items):",
    "def quicksort(items):",
    "def gcd(a, b):",
    "def split_lines(text):",
    "def load_config(filename):",
    "def copy_tree(src, dst):",
    "def get_address(host, port):",
    "def __init__(self, name, value=None):",
    "def format_date(year, month, day):",
)
SAMPLE_TOKENS = 200
TEMPERATURES = (0.0, 0.5)
SHORTEST_SHOWN = 120  # tokens a greedy continuation must reach to be shown
SHOWN = 3


@dataclass(frozen=True)
class Continuation:
    """What followed one prompt."""

    prompt: str
    text: str
    tokens: int

    @property
    def parses(self) -> bool:
        """Whether the first function is one in Python; cut off by the limit, its last line is
        left out."""
        lines = (self.prompt + self.text).split("\n")
        end = next((i for i, line in enumerate(lines[1:], 1) if line[:1].strip()), len(lines) - 1)
        return is_function("\n".join(lines[:end]))

    @property
    def variety(self) -> float:
        """The share of different runs of four words: low where the text goes in circles."""
        words = self.text.split()
        runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        return len(set(runs)) / max(1, len(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", nargs="*", default=PROMPTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    print(judge(arguments.model, arguments.prompts))


def judge(path: Path, prompts: Sequence[str]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    written = {
        temperature: [continue_prompt(model, tokenizer, prompt, temperature) for prompt in prompts]
        for temperature in TEMPERATURES
    }
    return report(written)


def continue_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, temperature: float
) -> Continuation:
    inputs = tokenizer(prompt, return_tensors="pt")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    ids = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, **sampling)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return Continuation(prompt, tokenizer.decode(new, skip_special_tokens=True), len(new))


def is_function(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    return bool(body) and isinstance(body[0], ast.FunctionDef)


def report(written: dict[float, list[Continuation]]) -> str:
    lines = ["", "## What it writes", ""]
    for temperature, continuations in written.items():
        good = sum(one.parses for one in continuations)
        lines.append(
            f"- temperature {temperature:g}: the first function parses in {good} of "
            f"{len(continuations)} continuations of {SAMPLE_TOKENS} tokens"
        )
    lines += ["", "Greedy continuations that read best:"]
    for one in best(written[0.0]):
        lines += ["", f"`{one.prompt}`", "", "```python", one.prompt + one.text, "```"]
    return "\n".join(lines)


def best(continuations: list[Continuation]) -> list[Continuation]:
    """Long ones that parse, those that repeat themselves least first."""
    fit = [one for one in continuations if one.parses and one.tokens >= SHORTEST_SHOWN]
    return sorted(fit, key=lambda one: one.variety, reverse=True)[:SHOWN]


if __name__ == "__main__":
    main()
