"""What the model learns: the next character of a text."""

from __future__ import annotations

import pathlib

import torch
from torch import Tensor


class Text:
    """A text as numbers of its characters, and batches of it.

    A batch is of two pieces, whatever the mode: a process that has both works on one after the
    other, as two processes do that have one each. So all add the same numbers in the same order.
    """

    PIECES = 2

    def __init__(self, path: pathlib.Path, context: int, sequences: int, seed: int) -> None:
        text = path.read_text(encoding="utf-8")
        characters = sorted(set(text))
        numbers = {one: number for number, one in enumerate(characters)}
        self.characters = len(characters)
        self._data = torch.tensor([numbers[one] for one in text])
        self._context = context
        self._sequences = sequences
        self._seed = seed

    def pieces(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The step's batch, the same at every call: characters and those that follow them.

        Each of shape [sequences / 2, context].
        """
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        last = len(self._data) - self._context - 1
        starts = torch.randint(last + 1, (self._sequences, 1), generator=random)
        taken = self._data[starts + torch.arange(self._context + 1)]
        return [(one[:, :-1], one[:, 1:]) for one in taken.chunk(self.PIECES)]
