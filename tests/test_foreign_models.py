"""Networks of other libraries: what they return, and how they call their last layer."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import make_dataset
from helpers.foreign_models import GoogLeNet, Timm, TorchvisionResNet, TorchvisionVGG, convnext, resnet, vit
from undoor.errors import UndoorError
from undoor.evidence.collect import collect
from undoor.filters import Average
from undoor.networks.classifier import Classifier

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
def test_the_last_layer_turns_the_features_into_the_logits(build, last):
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
    # With the layer given by name, the features are the same.
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


class WithOutput(nn.Module):
    """Returns its logits in another form."""

    def __init__(self, form):
        super().__init__()
        self.form, self.last = form, nn.Linear(144, 3)

    def forward(self, x):
        return self.form(self.last(x.flatten(1)))


@pytest.mark.parametrize("form", [lambda y: (y, y), lambda y: {"logits": y}, lambda y: y[:, None]])
def test_an_output_without_logits_is_refused(form):
    with pytest.raises(UndoorError, match="does not return one tensor of shape"):
        Classifier(WithOutput(form)).features_and_logits(torch.rand(2, 1, 12, 12))
