"""The networks of the benchmark suite, with random weights that carry what goes in to what comes out: outputs are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2015)."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(num_in, num_out, 3, stride)
        self.second = _conv(num_out, num_out, 3, 1)
        self.shortcut = nn.Identity() if stride == 1 and num_in == num_out else _conv(num_in, num_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, num_in, height, width] to [batch, num_out, height / stride, width / stride]."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al., 2018)."""

    def __init__(self, num_in: int, num_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = num_in * expansion
        expand = [_conv(num_in, hidden, 1, 1), nn.ReLU6()] if expansion != 1 else []
        self.body = nn.Sequential(*expand, _conv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(), _conv(hidden, num_out, 1, 1))
        self.residual = stride == 1 and num_in == num_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, num_in, height, width] to [batch, num_out, height / stride, width / stride]."""
        return x + self.body(x) if self.residual else self.body(x)


def _conv(num_in: int, num_out: int, size: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(num_out))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for num_out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(BasicBlock(channels, num_out, stride))
        channels = num_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, num_out, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(repeats):
            layers.append(InvertedResidual(channels, num_out, stride if repeat == 0 else 1, expansion))
            channels = num_out
    return nn.Sequential(*layers, _conv(channels, 1280, 1, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class BertBase(nn.Module):
    """transformers' BERT with its default sizes: 12 layers, 768 wide."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig(), add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int64 [batch, tokens] twice to float32 [batch, tokens, 768]."""
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@dataclass(frozen=True)
class Network:
    """How to make a network, and inputs to export it with; `dynamic` names their leading dims."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    dynamic: tuple[str, ...]


def _image() -> tuple[torch.Tensor, ...]:
    return (torch.randn(2, 3, 224, 224),)


def _tokens() -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 1000, (2, 9)), torch.ones(2, 9, dtype=torch.int64)


NETWORKS: Mapping[str, Network] = {
    "bert-base": Network(BertBase, _tokens, ("batch", "tokens")),
    "resnet18": Network(resnet18, _image, ("batch",)),
    "mobilenet-v2": Network(mobilenet_v2, _image, ("batch",)),
}


def _carrying(network: nn.Module) -> nn.Module:
    """With convolutions initialized as in He et al., "Delving Deep into Rectifiers", 2015.

    With torch's default an image fades from layer to layer: MobileNet-v2 gave its last bias whatever went in, which any kernel gets right.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


LIMITS = {"batch": 64, "tokens": 512}


def export(name: str, folder: Path) -> Path:
    """`folder/<name>.pt2`, made if it isn't there."""
    path = folder / f"{name}.pt2"
    if not path.exists():
        torch.manual_seed(0)
        network = NETWORKS[name]
        dims = {axis: torch.export.Dim(symbol, max=LIMITS[symbol]) for axis, symbol in enumerate(network.dynamic)}
        inputs = network.inputs()
        program = torch.export.export(_carrying(network.make()).eval(), inputs, dynamic_shapes=tuple(dims for _ in inputs))
        folder.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path)
    return path
