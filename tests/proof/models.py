"""Models that miscompiles are seeded in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir

WIDTH, HEADS, VOCABULARY = 32, 4, 50


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in self.qkv)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.first(x + self.out(attended))
        return self.second(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """(ids, mask), int64 [batch, tokens], to [batch, tokens, WIDTH]; post-norm, as BERT."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))
        for name, parameter in self.named_parameters():  # such that every part matters to the result, attention included
            is_norm = "first" in name or "second" in name
            nn.init.normal_(parameter, 1.0 if is_norm and name.endswith("weight") else 0.0, 0.3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        keep = mask[:, None, None, :] != 0
        for layer in self.layers:
            x = layer(x, keep)
        return x


class Convolutions(nn.Module):
    """Images [batch, 3, 20, 20] to [batch, 10]."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(num_layers - 1))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(-F.softplus(self.stem(x)), 3, 2, 1)
        for layer in self.layers:
            x = torch.relu(x + layer(x))
        return self.head(x.mean((2, 3)))


def encoder(num_layers: int) -> ImportedModel:
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=32)}
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    return import_torch(Encoder(num_layers).eval(), (ids, torch.ones_like(ids)), (shape, dict(shape)), name="encoder")


def convolutions(num_layers: int) -> ImportedModel:
    shape = {0: torch.export.Dim("batch", max=64)}
    return import_torch(
        Convolutions(num_layers).eval(),
        (torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0)),),
        (shape,),
        name="convolutions",
    )


def fresh(imported: ImportedModel, text: str) -> ImportedModel:
    """The same model with a module that no pass has changed; `text`: of the module when it was imported, with locations."""
    return replace(imported, module=ir.Module.parse(text, imported.module.context))


def located(module: Any) -> str:
    return str(module.operation.get_asm(enable_debug_info=True))
