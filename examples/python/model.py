"""A small character transformer, in two halves that a process each may have."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Each character looks at those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.taken = nn.Linear(width, 3 * width)
        self.given = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.taken(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        return self.given((weights @ value).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then a layer of its own for each character."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.hidden_norm = nn.LayerNorm(width)
        self.hidden = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.hidden(self.hidden_norm(x))


class Front(nn.Module):
    """The first half: from characters to numbers for each."""

    def __init__(self, characters: int, context: int, width: int, heads: int) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, width)
        self.place = nn.Embedding(context, width)
        self.block = Block(width, heads)

    def forward(self, characters: Tensor) -> Tensor:
        places = torch.arange(characters.shape[1])
        return self.block(self.character(characters) + self.place(places))


class Back(nn.Module):
    """The second half: what follows each character, and how wrong that is."""

    def __init__(self, characters: int, width: int, heads: int) -> None:
        super().__init__()
        self.block = Block(width, heads)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor, following: Tensor) -> Tensor:
        guesses = self.head(self.norm(self.block(x)))
        return nn.functional.cross_entropy(guesses.flatten(0, 1), following.flatten())


class Transformer(nn.Module):
    """Both halves. Gives the loss."""

    def __init__(self, characters: int, context: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.front = Front(characters, context, width, heads)
        self.back = Back(characters, width, heads)

    def forward(self, characters: Tensor, following: Tensor) -> Tensor:
        return self.back(self.front(characters), following)
