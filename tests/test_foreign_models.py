"""Networks of other libraries: what they return, and how they call their last layer.

The models of ``transformers`` are the real ones, tiny and not trained; those of timm and torchvision are built here
with the same structure, as these libraries do not install beside a CPU build of torch.
"""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from conftest import make_dataset
from undoor.errors import UndoorError
from undoor.evidence.collect import collect
from undoor.filters import Average
from undoor.networks.classifier import Classifier


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                  intermediate_size=8, num_labels=3)
    )  # fmt: skip


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    )


class Timm(nn.Module):
    """As in timm: features of all patches, a pooled token, and a head that can stop before its last layer."""

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
    """As in torchvision while it trains: a named tuple with the outputs of auxiliary heads beside the logits."""

    Outputs = namedtuple("Outputs", ["logits", "aux_logits2", "aux_logits1"])

    def forward(self, x: Tensor) -> "GoogLeNet.Outputs":
        return self.Outputs(super().forward(x), None, None)


MODELS = {
    "transformers ViT": (vit, "classifier"),
    "transformers ResNet": (resnet, "classifier.1"),
    "transformers ConvNeXt": (convnext, "classifier"),
    "timm": (Timm, "head"),
    "torchvision ResNet": (TorchvisionResNet, "fc"),
    "torchvision VGG": (TorchvisionVGG, "classifier.6"),
    "torchvision GoogLeNet": (GoogLeNet, "fc"),
}


@pytest.mark.parametrize(("build", "last"), MODELS.values(), ids=list(MODELS))
def test_features_are_what_the_last_layer_makes_the_logits_of(build, last):
    torch.manual_seed(0)
    model = build()
    data = make_dataset(n_per_class=4, size=32, channels=3)
    evidence = collect(Classifier(model, mean=[0.5] * 3, std=[0.5] * 3), data, (Average(),))
    with torch.inference_mode():
        layer = model.get_submodule(last)
        x = (torch.from_numpy(data.images) / 255 - 0.5) / 0.5
        output = model.eval()(x)
        logits = output if isinstance(output, Tensor) else output.logits
        again = layer(torch.from_numpy(evidence.plain.features))
    assert np.allclose(evidence.plain.logits, logits, atol=1e-4)
    assert np.allclose(evidence.plain.logits, again, atol=1e-4)
    # A network that is named layer by layer gives the same.
    named = collect(Classifier(model, layer=last, mean=[0.5] * 3, std=[0.5] * 3), data, (Average(),))
    assert np.array_equal(named.plain.features, evidence.plain.features)


class Keywords(nn.Module):
    """Calls its layers with keyword arguments only."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(144, 8)
        self.out = nn.Linear(8, 3)
        self.switch = Switch()

    def forward(self, x):
        return self.switch(on=True, x=self.out(input=self.inner(input=x.flatten(1))))


class Switch(nn.Module):
    def forward(self, on, x):
        return x if on else -x


def test_a_layer_that_is_called_with_keywords():
    x = torch.rand(2, 1, 12, 12)
    model = Keywords()
    features, _ = Classifier(model).features_and_logits(x)
    assert torch.allclose(features, model.inner(x.flatten(1)))
    with pytest.raises(UndoorError, match="input of layer 'switch' is no tensor of shape"):
        Classifier(model, layer="switch").features_and_logits(x)


class Other(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output, self.last = output, nn.Linear(144, 3)

    def forward(self, x):
        return self.output(self.last(x.flatten(1)))


@pytest.mark.parametrize("output", [lambda y: (y, y), lambda y: {"logits": y}, lambda y: y[:, None]])
def test_what_holds_no_logits_is_refused(output):
    with pytest.raises(UndoorError, match="does not return one tensor of shape"):
        Classifier(Other(output)).features_and_logits(torch.rand(2, 1, 12, 12))
