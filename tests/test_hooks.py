"""Every use of hooks gives a lone image, and a last batch of one, what it gives the same image in a larger batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import undoor
from conftest import make_dataset
from undoor.data.dataset import row_ids
from undoor.defenses.post_training.channels import decisions_along, find_channels, mean_activations
from undoor.defenses.test_time import Ada, max_softmax
from undoor.evidence.collect import collect
from undoor.filters import Average
from undoor.networks.architectures import build_network
from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.hooks import hooked
from undoor.networks.layers import deep_layers, layer_outputs, watched_inputs

LAYERS = ("1.stages.4", "1.stages.8", "1.classify")


@pytest.fixture(scope="module")
def classifier():
    return Classifier(build_network("small-cnn", (1, 12, 12), 3), device="cpu")


@pytest.fixture(scope="module")
def images():
    return make_dataset(n_per_class=50).images[: BATCH_SIZE + 1]


def registered(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def features(classifier, images):
    return classifier.features_and_logits(classifier.scale(images))[0].numpy()


def logits(classifier, images):
    return classifier.features_and_logits(classifier.scale(images))[1].numpy()


def layer_inputs(classifier, images):
    return np.concatenate(layer_outputs(classifier, images, LAYERS)[0], axis=1)


def layer_logits(classifier, images):
    return layer_outputs(classifier, images, LAYERS)[1]


def inputs_of_one_pass(classifier, images):
    with classifier.watched() as forward, watched_inputs(classifier.model, LAYERS) as inputs:
        forward(classifier.scale(images))
    return np.concatenate([inputs[name].numpy() for name in LAYERS], axis=1)


def evidence(classifier, images):
    labels, names = np.zeros(len(images), np.int64), ("a", "b", "c")
    found = collect(classifier, undoor.Dataset(images, labels, names, row_ids(len(images))), (Average(),))
    return np.concatenate([outputs.features for outputs in (found.plain, *found.filtered.values())], axis=1)


def decisions(classifier, images):
    return classifier.decide(images)


def doubt(classifier, images):
    return max_softmax(classifier, images)


def decisions_of_pruned_networks(classifier, images):
    channels = find_channels(classifier, images[:1])
    return decisions_along(classifier, channels, np.arange(channels.count), images).T


def assert_close(values, expected):
    """Kernels may round otherwise for batches of another size."""
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


PER_IMAGE = [
    features,
    logits,
    layer_inputs,
    layer_logits,
    inputs_of_one_pass,
    evidence,
    decisions,
    doubt,
    decisions_of_pruned_networks,
]


@pytest.mark.parametrize("function", PER_IMAGE, ids=lambda function: function.__name__)
def test_a_lone_image_gives_what_it_gives_in_a_larger_batch(function, classifier, images):
    expected = function(classifier, images[:BATCH_SIZE])
    assert len(expected) == BATCH_SIZE
    assert_close(function(classifier, images[:1]), expected[:1])
    # With batches of 128, the last of 129 images is alone.
    whole = function(classifier, images)
    assert len(whole) == BATCH_SIZE + 1
    assert_close(whole[:-1], expected)
    assert_close(whole[-1:], function(classifier, images[-2:])[1:])
    assert registered(classifier.model) == 0


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, BATCH_SIZE + 1)], ids=["1", "129"])
def test_mean_activations_count_every_image_once(rows, classifier, images):
    channels = find_channels(classifier, images[:2])
    found = mean_activations(classifier, channels, images[rows])
    model = classifier.model.eval()
    convolution_and_norm = model[1].stages[:10]
    with torch.no_grad():
        values = convolution_and_norm(model[0](classifier.scale(images[rows])))
    assert channels.ends == ("1.stages.9",)
    np.testing.assert_allclose(found, values.relu().mean((0, 2, 3)).numpy(), rtol=1e-5)


def test_channels_and_deep_layers_are_those_of_a_batch(classifier, images):
    assert find_channels(classifier, images[:1]) == find_channels(classifier, images)
    for count in (1, BATCH_SIZE + 1):
        with classifier.watched() as forward:
            batch = classifier.scale(images[:count])
            assert deep_layers(classifier.model, lambda: forward(batch), 3) == LAYERS  # noqa: B023


@pytest.mark.parametrize("statistic", ["density", "kl"])
@pytest.mark.parametrize("count", [1, BATCH_SIZE + 1])
def test_a_guard_checks_any_number_of_queries(statistic, count, network, images):
    classifier = Classifier(network, device="cpu")
    guard = Ada(statistic=statistic).fit(classifier, make_dataset(n_per_class=60, seed=1))
    assert isinstance(guard, undoor.Guard)
    batch, checked = guard.check(images[:BATCH_SIZE]), guard.check(images[:count])
    assert [len(values) for values in (checked.decisions, checked.statistic, checked.rejected)] == [count] * 3
    shared = min(count, BATCH_SIZE)
    np.testing.assert_array_equal(checked.decisions[:shared], batch.decisions[:shared])
    np.testing.assert_allclose(checked.statistic[:shared], batch.statistic[:shared], rtol=1e-9)


class Passed(nn.Module):
    """Calls a layer by keyword with another layer's output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(144, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(input=self.first(x.flatten(1)))


def test_hooks_see_the_given_rows_or_every_row():
    classifier = Classifier(Passed(), device="cpu")
    seen = {}

    def before(name, inputs):
        seen[name] = [tuple(value.shape) for value in inputs]

    def after(name, inputs, output):
        seen[name] = [*seen[name], tuple(output.shape)]

    x = torch.rand(1, 1, 12, 12)
    for every_row, rows in ((False, 1), (True, 2)):
        hooks = hooked(classifier.model, ["second"], before=before, after=after, every_row=every_row)
        with classifier.watched() as forward, hooks:
            forward(x)
        assert seen == {"second": [(rows, 8), (rows, 3)]}
    with hooked(classifier.model, ["second"], before=before, after=after):
        classifier.model(torch.rand(6, 1, 12, 12))
    assert seen == {"second": [(6, 8), (6, 3)]}


def test_an_output_is_replaced_until_the_context_ends():
    model, x = Passed(), torch.rand(3, 1, 12, 12)
    before = model(x)

    def fail_after_a_pass():
        with hooked(model, ["second"], after=lambda _, __, output: 2 * output, every_row=True):
            assert torch.equal(model(x), 2 * before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_pass()
    assert torch.equal(model(x), before)
    assert registered(model) == 0


def test_no_other_module_registers_hooks():
    source = Path(undoor.__file__).parent
    files = [path for path in source.rglob("*.py") if "register_forward" in path.read_text()]
    assert [path.relative_to(source).as_posix() for path in files] == ["networks/hooks.py"]
