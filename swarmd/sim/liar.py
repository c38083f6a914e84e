"""A client whose word is not to be trusted: what it spoils must be its own stream alone."""

from __future__ import annotations

from dataclasses import replace

from swarmd.node.requests import Generation
from swarmd.node.run import Output
from swarmd.pipeline import events as ev
from swarmd.sim.call import Call
from swarmd.sim.client import Client


class Liar(Client):
    """Resumes its session with the ids of other prompts, or says that a kept session had them."""

    lie: tuple[int, ...] = ()
    """What it says that its prompt was, of the same length; empty while it is honest."""

    def tell(self, lie: tuple[int, ...]) -> None:
        """Begin to lie: resume with these ids, as far as they go, then its own."""
        self.lie = (*lie, *self.prompt_ids[len(lie) :])[: len(self.prompt_ids)]
        self.desert()

    def _generation(self) -> Generation:
        honest = super()._generation()
        return replace(honest, prompt_ids=self.lie) if self.lie and self.begun else honest

    def take(self, call: Call, output: Output) -> None:
        super().take(call, output)
        if self.lie:
            self.kept = None  # nobody could say of what ids

    def _token(self, output: ev.Emit) -> None:
        if not self.lie:
            super()._token(output)
        elif output.position - len(self.prompt_ids) == len(self.ids):
            self.ids.append(output.id)

    @property
    def expected(self) -> list[int]:
        return list(self.ids) if self.lie else super().expected
