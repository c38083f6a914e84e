"""What the names of a checkpoint's tensors say about its blocks: which are whose, and how many.

Names come from strangers; the tensors themselves are `swarmd.engine.weights`' business.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from swarmd.core.errors import ModelError, WeightsError
from swarmd.core.span import Span

_FIRST_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")
_PREDICTING_BLOCKS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Config keys for blocks that follow the model's own and predict further tokens."""


def span_tensors(names: Iterable[str], span: Span, num_blocks: int) -> dict[str, str]:
    """Map the name that a tensor has in a model of only this span to its name in the checkpoint.

    A block's tensors carry its index as the first number of their names. Tensors without a number
    are kept as they are: which of them the span needs shows when the model is built.
    """
    listed = list(names)
    prefix = _block_prefix(listed, num_blocks)
    chosen: dict[str, str] = {}
    for name in listed:
        index, start, end = _block_index(name, prefix)
        if index is None:
            chosen[name] = name
        elif index in span:
            chosen[f"{name[:start]}{index - span.start}{name[end:]}"] = name
    return chosen


def check_block_count(
    names: Iterable[str], config_dict: Mapping[str, Any], ignored: Iterable[str], num_blocks: int
) -> None:
    """Raise ModelError if the checkpoint has more blocks than the model, which would not be it.

    Blocks for predicting several tokens at once may follow the model's own: as many as its config
    says, or those that its class leaves out by patterns (`ignored`).
    """
    listed = list(names)
    prefix = _block_prefix(listed, num_blocks)
    said = (config_dict.get(key) for key in _PREDICTING_BLOCKS)
    predicting = max((0, *(count for count in said if isinstance(count, int))))
    patterns = [re.compile(pattern) for pattern in ignored]
    extra = {
        index
        for name in listed
        if (index := _block_index(name, prefix)[0] or 0) >= num_blocks + predicting
        and not any(pattern.search(name) for pattern in patterns)
    }
    if extra:
        raise ModelError(
            f"config.json says {num_blocks} blocks (num_hidden_layers), and the checkpoint has "
            f"{max(extra) + 1}: config and weights are not of the same model. Blocks that predict "
            f"further tokens would be announced by {_PREDICTING_BLOCKS[0]}"
        )


def _block_index(name: str, prefix: str) -> tuple[int | None, int, int]:
    found = _FIRST_NUMBER.search(name)
    if found is None or name[: found.start()] != prefix:
        return None, 0, 0
    return int(found.group()), found.start(), found.end()


def _block_prefix(names: list[str], num_blocks: int) -> str:
    """Return what stands before the block index in tensor names: the commonest that has all."""
    counts: Counter[str] = Counter()
    indices: dict[str, set[int]] = {}
    for name in names:
        if found := _FIRST_NUMBER.search(name):
            counts[name[: found.start()]] += 1
            indices.setdefault(name[: found.start()], set()).add(int(found.group()))
    for prefix, _ in counts.most_common():
        if indices[prefix].issuperset(range(num_blocks)):
            return prefix
    raise WeightsError(f"the checkpoint lacks tensors for some of the model's {num_blocks} blocks")
