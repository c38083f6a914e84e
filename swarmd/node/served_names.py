"""Which model a request means: by its name, its digest, or both, as `NAME@DIGEST`.

Nodes choose the names of what they serve, so one name may stand for several models, and one model
may go by several names. What is then done for the client is `swarmd.node.inference`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from swarmd.core.errors import AmbiguousModel, UnknownModel
from swarmd.core.peers import ModelInfo, qualified
from swarmd.swarm.view import View

_QUALIFIED = re.compile(r"(.*)@([0-9a-f]{8,64})")


def means(asked: str, model: ModelInfo) -> bool:
    """Whether a node that serves `model` is to take a request for `asked` as one for it."""
    if asked in ("", model.name, model.digest):
        return True
    found = _QUALIFIED.fullmatch(asked)
    if found is None:
        return False
    return found[1] == model.name and model.digest.startswith(found[2])


def find(view: View, asked: str) -> ModelInfo:
    """The model of the swarm that `asked` means.

    Of namesakes the only one of which no block is missing. Raises UnknownModel naming the models
    there are, or AmbiguousModel naming the namesakes.
    """
    digests = dict.fromkeys(peer.model.digest for peer in view.peers if means(asked, peer.model))
    models = [model for model in view.models if model.digest in digests]
    whole = [model for model in models if not view.missing(model.digest)]
    if len(models) == 1 or len(whole) == 1:
        return (whole or models)[0]
    if models:
        raise AmbiguousModel(
            f"{asked!r} stands for {len(models)} models here: ask for {_list(models)}"
        )
    raise UnknownModel(f"nobody in the swarm serves {asked!r}; models here: {_list(view.models)}")


def _list(models: Iterable[ModelInfo]) -> str:
    """Their names, with digests where a name alone does not tell them apart."""
    listed = list(models)
    names = [model.name for model in listed]
    shown = (
        qualified(model.name, model.digest) if names.count(model.name) > 1 else model.name
        for model in listed
    )
    return ", ".join(sorted(shown)) or "none"
