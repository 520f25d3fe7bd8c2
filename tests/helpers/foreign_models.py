"""Networks as other libraries build them, small and untrained.

Those of ``transformers`` are its own. Those of timm and torchvision are rebuilt with the same structure, because these
libraries cannot be installed beside a CPU build of torch.
"""

from collections import namedtuple

import torch
from torch import Tensor, nn
from torch.nn import functional


def vit():
    """Return a vision transformer of ``transformers``."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                  intermediate_size=8, num_labels=3)
    )  # fmt: skip


def resnet():
    """Return a ResNet of ``transformers``."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def convnext():
    """Return a ConvNeXt of ``transformers``."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    )


class Timm(nn.Module):
    """As in timm: features of all patches, a class token, and a head that can stop before its last layer."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 8, stride=8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.head_drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.norm(torch.cat([self.cls_token.expand(len(x), -1, -1) + patches.mean(1, keepdim=True), patches], 1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(x[:, 0])
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class TorchvisionResNet(nn.Module):
    """As in torchvision: pooled, flattened, ``fc``."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(functional.relu(self.bn1(self.conv1(x)))), 1))


class TorchvisionVGG(nn.Module):
    """As in torchvision: a classifier of several linear layers with dropout between them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Sequential(
            nn.Linear(64, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class GoogLeNet(TorchvisionResNet):
    """As in torchvision in training mode: a named tuple of the logits and the outputs of auxiliary heads."""

    Outputs = namedtuple("Outputs", ["logits", "aux_logits2", "aux_logits1"])

    def forward(self, x: Tensor) -> "GoogLeNet.Outputs":
        return self.Outputs(super().forward(x), None, None)
