import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import undoor
from conftest import Linear, make_dataset
from undoor.errors import UndoorError
from undoor.networks.architectures import ResNet20, SmallCNN, build_network, default_network
from undoor.networks.classifier import Classifier
from undoor.networks.weights import (
    Architecture,
    call_factory,
    load_model,
    read_architecture,
    require_same_classes,
    save_model,
)

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def images(n=6):
    return make_dataset(n_per_class=n).images[:n]


class TwoHeads(nn.Module):
    """Its last linear layer does not return the logits."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(144, 3)
        self.auxiliary = nn.Linear(144, 7)

    def forward(self, x):
        logits = self.classify(x.flatten(1))
        self.auxiliary(x.flatten(1))
        return logits


class Idle(Linear):
    """Its last linear layer never runs."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)


def test_features_are_the_input_of_the_last_linear_layer_that_runs():
    for model in (Linear(), Idle()):
        classifier = Classifier(model)
        x = classifier.scale(images())
        features, logits = classifier.features_and_logits(x)
        expected = model.hidden(x.flatten(1)).relu()
        assert torch.allclose(features, expected)
        assert torch.allclose(logits, model.out(expected))


def test_features_of_a_named_layer():
    model = Linear()
    classifier = Classifier(model, layer="hidden")
    x = classifier.scale(images())
    assert torch.allclose(classifier.features_and_logits(x)[0], x.flatten(1))
    network = build_network("small-cnn", (1, 12, 12), 3)
    features, _ = Classifier(network, layer="1.stages.8").features_and_logits(x)
    assert features.shape == (6, 64)  # averaged over the positions


def test_ambiguous_and_unknown_layers_list_the_candidates():
    x = torch.zeros(2, 1, 12, 12)
    with pytest.raises(UndoorError, match=r"\(auxiliary\) does not yield the 3 logits.*'classify', 'auxiliary'"):
        Classifier(TwoHeads()).features_and_logits(x)
    assert Classifier(TwoHeads(), layer="classify").features_and_logits(x)[0].shape == (2, 144)
    with pytest.raises(UndoorError, match="no layer 'nothing'; its linear layers: 'hidden', 'out'"):
        Classifier(Linear(), layer="nothing")
    with pytest.raises(UndoorError, match=r"no linear layer; name the layer.*'0', '1'"):
        Classifier(nn.Sequential(nn.Conv2d(1, 3, 12), nn.Flatten()))
    with pytest.raises(UndoorError, match="no layer of 'unused' runs"):
        Classifier(Idle(), layer="unused").features_and_logits(x)


def test_mean_and_deviation_are_applied_to_images_in_the_unit_interval():
    model = Linear()
    x = Classifier(model).scale(images())
    plain = Classifier(model).features_and_logits((x - 0.4) / 0.2)[1]
    assert torch.allclose(Classifier(model, mean=[0.4], std=[0.2]).features_and_logits(x)[1], plain)
    with pytest.raises(UndoorError, match="both or neither"):
        Classifier(model, mean=[0.4])


def test_the_training_mode_is_restored():
    model = Linear().train()
    classifier = Classifier(model)
    first, second = (classifier.features_and_logits(classifier.scale(images()))[1] for _ in range(2))
    assert torch.equal(first, second)  # dropout was off
    assert model.training


def test_decisions_do_not_depend_on_the_batch_size():
    data = make_dataset()
    classifier = Classifier(Linear())
    assert np.array_equal(classifier.decide(data.images, 7), classifier.decide(data.images, 60))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_batches_reach_the_device_whole_and_in_order(device):
    data = np.random.default_rng(0).integers(0, 256, (1000, 3, 8, 8), dtype=np.uint8)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), device=device)
    batches = list(classifier.batches(data, 64))
    assert [len(batch) for batch in batches] == [64] * 15 + [40]
    assert np.array_equal((torch.cat(batches) * 255).round().cpu().numpy(), data)
    assert all(batch.device.type == device for batch in batches)


def test_batches_of_large_images_are_smaller(monkeypatch):
    monkeypatch.setattr("undoor.storage.mapped.VALUES_AT_ONCE", 1000)
    classifier, images = Classifier(Linear()), np.zeros((20, 1, 12, 12), np.uint8)
    assert [len(batch) for batch in classifier.batches(images, 8)] == [6, 6, 6, 2]
    assert [len(batch) for batch in classifier.batches(images, 4)] == [4] * 5
    assert [len(batch) for batch in classifier.batches(np.zeros((3, 1, 40, 40), np.uint8))] == [1] * 3
    assert np.array_equal(classifier.decide(images), classifier.decide(images, 2))


def test_different_networks_have_different_fingerprints():
    def fingerprint(change=lambda model: None, **options):
        model = build_network("small-cnn", (1, 12, 12), 3)
        change(model)
        return Classifier(model, **options).fingerprint()

    def spoil(model):
        model[1].stages[1].running_mean[2] += 1e-6

    fingerprints = [
        fingerprint(),
        fingerprint(spoil),
        fingerprint(lambda model: model.double()),
        fingerprint(lambda model: model.append(nn.Identity())),
        fingerprint(layer="1.classify"),
        fingerprint(mean=[0.1], std=[0.2]),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert fingerprint() == fingerprints[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), "fails on images of shape"),
        (nn.Sequential(nn.Linear(12, 3)), "one tensor of shape"),
    ],
)
def test_models_that_do_not_fit_are_reported(model, message):
    with pytest.raises(UndoorError, match=message) as raised:
        Classifier(model).features_and_logits(torch.zeros(2, 1, 12, 12))
    assert "\n" not in str(raised.value)


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(UndoorError, match=r"give a torch\.nn\.Module"):
        Classifier(lambda x: x)


def test_networks_have_the_published_shape():
    resnet = ResNet20(3, 10)
    parameters = sum(p.numel() for p in resnet.parameters())
    # He et al.: 0.27 M parameters; 19 convolutions and one linear layer.
    assert 0.265e6 < parameters < 0.275e6
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in resnet.modules()) == 20
    assert resnet(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert SmallCNN(1, 10)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert (default_network(32, 32), default_network(16, 16)) == ("resnet20", "small-cnn")
    with pytest.raises(UndoorError, match="no network 'vgg'"):
        build_network("vgg", (3, 32, 32), 10)


def test_the_seed_determines_the_initial_weights_and_the_global_state_stays():
    before = torch.random.get_rng_state()
    first, second, third = (build_network("small-cnn", (1, 12, 12), 3, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first.classify.weight, second.classify.weight)
    assert not torch.equal(first.classify.weight, third.classify.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_read_as_they_were_written(tmp_path):
    model = build_network("small-cnn", (1, 12, 12), 3, seed=4).eval()
    architecture = Architecture("small-cnn", (1, 12, 12), ("a", "b", "c"), {"name": "fast"})
    save_model(model, architecture, tmp_path / "m.safetensors")
    loaded, names = load_model(tmp_path / "m.safetensors")
    x = torch.rand(2, 1, 12, 12)
    assert torch.equal(loaded.eval()(x), model(x))
    assert names == ("a", "b", "c")
    assert read_architecture(tmp_path / "m.safetensors") == architecture
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    require_same_classes(names, ["a", "b", "c"], tmp_path)
    require_same_classes(None, ["a"], tmp_path)
    with pytest.raises(UndoorError, match="trained for the classes a, b, c, the data has a, c, b"):
        require_same_classes(names, ["a", "c", "b"], tmp_path)


def harmful():
    raise AssertionError("a file decided which code was run")


def test_a_file_does_not_decide_which_code_runs(tmp_path):
    model = build_network("small-cnn", (1, 12, 12), 3)
    save_model(model, Architecture("test_classifier:harmful", (1, 12, 12), ("a", "b"), {}), tmp_path / "m.safetensors")
    with pytest.raises(UndoorError, match="and does not say which network it belongs to; name a function"):
        load_model(tmp_path / "m.safetensors")
    save_model(model, Architecture("small-cnn", (3, 10**9, 10**9), ("a", "b"), {}), tmp_path / "m.safetensors")
    with pytest.raises(UndoorError, match="its images have more than 1,048,576 pixels"):
        load_model(tmp_path / "m.safetensors")


def test_weights_of_a_users_network(tmp_path):
    save_file(Linear().state_dict(), tmp_path / "m.safetensors")
    torch.save(Linear().state_dict(), tmp_path / "m.pt")
    for name in ("m.safetensors", "m.pt"):
        model, names = load_model(tmp_path / name, "conftest:linear_network")
        assert torch.equal(model.out.weight, Linear().out.weight)
        assert names is None
        with pytest.raises(UndoorError, match=r"--network package\.module:factory"):
            load_model(tmp_path / name)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.pkl", "m.pt2", "m.bin"])
def test_pickled_models_are_refused_and_their_code_does_not_run(tmp_path, name):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    torch.save({"model": Harmful()}, tmp_path / name)
    with pytest.raises(UndoorError, match=r"pickled object: loading it would run code.*safetensors"):
        load_model(tmp_path / name, "conftest:linear_network")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nowhere:factory", "no network 'nowhere:factory'"),
        ("conftest:nothing", "no network"),
        ("conftest", "no network"),
        ("conftest:make_dataset", "returned a Dataset"),
    ],
)
def test_wrong_factories_are_reported(tmp_path, network, message):
    save_file(Linear().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(UndoorError, match=message):
        load_model(tmp_path / "m.safetensors", network)


def test_files_that_are_no_weights_are_reported(tmp_path):
    with pytest.raises(UndoorError, match="is no file"):
        load_model(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0" + b"x" * 40)
    with pytest.raises(UndoorError, match="not a whole safetensors file"):
        load_model(tmp_path / "m.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UndoorError, match="do not fit the network: Missing key"):
        load_model(tmp_path / "other.safetensors", "conftest:linear_network")
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(UndoorError, match="no state_dict"):
        load_model(tmp_path / "m.pt", "conftest:linear_network")


def test_public_names_exist():
    for name in undoor.__all__:
        assert getattr(undoor, name) is not None
    assert dir(undoor) == undoor.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = undoor.nothing


def test_scaling_that_does_not_fit_the_channels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(UndoorError, match="std has 2 numbers, the images have 3 channels"):
        Classifier(model, mean=[0.5], std=[0.2, 0.2]).features_and_logits(images)
    single, repeated = (Classifier(model, mean=[0.5] * n, std=[0.2] * n).features_and_logits(images)[1] for n in (1, 3))
    assert torch.equal(single, repeated)


@pytest.mark.parametrize("name", ["mine.py:network", "mine.network", "mine"])
def test_a_name_that_is_no_factory_is_reported_with_an_example(name):
    with pytest.raises(UndoorError, match="such as mine:network for the function network"):
        call_factory(name)
