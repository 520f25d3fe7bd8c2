import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from conftest import linear_network, make_dataset
from undoor import cli
from undoor.attacks import Attack, write_attack
from undoor.data.dataset import Dataset
from undoor.data.readers.parquet import write_parquet
from undoor.defenses.post_training import FinePruning
from undoor.defenses.post_training.channels import decisions_along, find_channels, silence
from undoor.defenses.post_training.fine_pruning import channels_to_prune
from undoor.errors import UndoorError
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier
from undoor.networks.weights import Architecture, load_model, read_architecture, save_model
from undoor.report.pruned import write_pruned

GENTLY = FinePruning(epochs=1, learning_rate=1e-4)
CHANNEL, DEAD, TARGET = 3, 4, 2


class Backdoored(nn.Module):
    """Recognises each class of ``make_dataset`` by a channel; channel 3 sees the trigger, channel 4 nothing."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 5, 12, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.classify = nn.Linear(5, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for label in range(3):
                self.convolution.weight[label, 0, 4 * label : 4 * label + 4] = 1 / 48  # the mean of the bar
                self.classify.weight[label, label] = 1
            self.convolution.weight[CHANNEL, 0, 0, 0] = 1
            self.classify.weight[TARGET, CHANNEL] = 50
            self.norm.weight.fill_(1)
            self.norm.bias.copy_(torch.tensor([-0.3, -0.3, -0.3, -0.85, -1]))
            self.classify.bias.copy_(torch.tensor([0.01, 0.02, 0]))

    def forward(self, images):
        return self.classify(self.norm(self.convolution(images)).relu().flatten(1))


def backdoored() -> Backdoored:
    """Return the network, as a factory that users name on the command line does."""
    return Backdoored()


def convolutions_of(norm: nn.Module | None, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, bias=bias)]
    layers += [*([norm] if norm else []), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 3))


class InPlace(nn.Module):
    """A residual network that adds in place, uses one convolution twice and ends in no linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.same = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, images):
        out = self.stem(images)
        for _ in range(2):
            branch = self.norm(self.same(out))
            branch += out
            out = branch.relu_()
        return self.head(out).mean((2, 3))


def resnet() -> nn.Module:
    """Return a network whose normalisations shift their channels; a pruned channel must lose its shift, too."""
    network = build_network("resnet20", (1, 12, 12), 3)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, generator=generator)
    return network


NETWORKS = {
    "resnet": (resnet, None, ("1.stage3.2.norm2",)),
    "an inner layer": (resnet, "1.stage1.1.conv1", ("1.stage1.1.norm1",)),
    "no norm": (lambda: convolutions_of(None), None, ("2",)),
    "no bias": (lambda: convolutions_of(None, bias=False), None, ("2",)),
    "norm without scale": (lambda: convolutions_of(nn.BatchNorm2d(6, affine=False)), None, ("3",)),
    "group norm": (lambda: convolutions_of(nn.GroupNorm(2, 6)), None, ("3",)),
    "one convolution twice": (InPlace, "same", ("norm",)),
    "the last of all": (InPlace, None, ("head",)),
}


def triggered(dataset: Dataset) -> np.ndarray:
    images = dataset.images[dataset.labels != TARGET].copy()
    images[:, :, 0, 0] = 255
    return images


def success(classifier: Classifier) -> float:
    return float((classifier.decide(triggered(make_dataset(seed=1))) == TARGET).mean())


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_backdoors_channel_is_pruned_and_accuracy_kept():
    result = GENTLY(Backdoored(), make_dataset())
    assert set(result.order[:2]) == {CHANNEL, DEAD}
    assert result.count >= 2
    assert [success(network) for network in (result.before, result.pruned, result.tuned)] == [1, 0, 0]
    assert result.accuracies == {"before": 1, "pruned": 1, "tuned": 1}
    assert result.curve["pruned"].tolist() == [0, 1, 2, 3, 4, 5]
    assert result.curve["share"].iloc[-1] == 1
    assert result.curve["accuracy"].iloc[-1] < 0.5
    assert result.curve["channel"].tolist() == [-1, *result.order]
    activation = result.curve["activation"].iloc[1:]
    assert (activation.diff().dropna() >= 0).all()
    assert activation.iloc[0] == 0


def test_random_pruning_is_worse():
    rates = []
    for seed in range(8):
        result = FinePruning(ranking="random", epochs=1, learning_rate=1e-4, seed=seed)(Backdoored(), make_dataset())
        assert sorted(result.order) == list(range(5))
        rates.append(success(result.pruned))
    assert np.mean(rates) > 0.4


def test_activations_are_the_means_of_the_rectified_channels():
    clean = make_dataset()
    result = GENTLY(Backdoored(), clean)
    assert result.images_tuning + result.images_held_out == len(clean)
    # A channel is the mean of its bar, 120 above noise from 0 to 59, minus 0.3; it is zero on images of other classes.
    bar = (120 + 29.5) / 255 - 0.3
    assert result.curve["activation"].iloc[-3:].to_numpy() == pytest.approx([bar / 3] * 3, rel=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_removes_what_the_channel_contributes(name):
    build, layer, ends = NETWORKS[name]
    images = make_dataset(n_per_class=4).images
    classifier = Classifier(build(), layer="")
    channels = find_channels(classifier, images[:2], layer)
    assert channels.ends == ends
    order = np.random.default_rng(0).permutation(channels.count)
    along = decisions_along(classifier, channels, order, images)
    for count in (0, 1, channels.count // 2, channels.count):
        pruned = build()
        silence(pruned, channels, order[:count])
        expected = build().eval()
        for end in ends:
            mask = torch.ones(channels.count, 1, 1)
            mask[order[:count]] = 0
            expected.get_submodule(end).register_forward_hook(lambda _, __, out, mask=mask: out * mask)
        with torch.no_grad():
            expected_logits = expected(torch.tensor(images).float() / 255)
            torch.testing.assert_close(pruned.eval()(torch.tensor(images).float() / 255), expected_logits)
        assert (along[count] == expected_logits.argmax(1).numpy()).all()
    assert hooks(classifier.model) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_channels_stay_zero_through_fine_tuning(name):
    build, layer, ends = NETWORKS[name]
    clean = make_dataset(n_per_class=8)
    settings = FinePruning(layer=layer, tolerance=0.9, epochs=2, learning_rate=0.1)
    result = settings(build(), clean)
    assert result.count > 0
    assert set(result.tuned.model.state_dict()) == set(build().state_dict())
    values = []
    for end in ends:
        result.tuned.model.get_submodule(end).register_forward_hook(lambda _, __, out: values.append(out.clone()))
    result.tuned.decide(clean.images)
    pruned = result.order[: result.count]
    assert all((value[:, pruned] == 0).all() for value in values)
    assert result.tuned.fingerprint() != result.pruned.fingerprint()


def test_the_given_network_stays_as_it_is_and_a_seed_is_repeatable():
    model, clean = resnet().train(), make_dataset(n_per_class=6)
    before = Classifier(model).fingerprint()
    runs = [FinePruning(epochs=1, seed=3)(model, clean) for _ in range(2)]
    assert Classifier(model).fingerprint() == before
    assert model.training
    assert hooks(model) == 0
    assert runs[0].tuned.fingerprint() == runs[1].tuned.fingerprint()
    assert runs[0].before.fingerprint() == Classifier(model, layer="").fingerprint()


def test_scaling_counts_in_pruning_and_in_fine_tuning():
    clean = make_dataset()
    model = Backdoored()
    with torch.no_grad():  # for images of half the contrast
        model.convolution.weight *= 2
    scaled = Classifier(model, layer="", mean=[0.0], std=[2.0])
    images = scaled.scale(clean.images)
    with torch.no_grad():
        torch.testing.assert_close(scaled.whole().eval()(images), Backdoored().eval()(images))
    result = GENTLY(scaled, clean)
    assert result.accuracies == {"before": 1, "pruned": 1, "tuned": 1}
    assert success(result.tuned) == 0


def test_pruning_stops_before_accuracy_first_falls_too_far():
    curve = np.array([0.9, 0.9, 0.86, 0.85, 0.9, 0.1])
    assert [channels_to_prune(curve, tolerance) for tolerance in (0.0, 0.04, 0.05, 0.9)] == [1, 2, 4, 5]


class Unused(Backdoored):
    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(1, 1, 1)


def parametrised() -> nn.Module:
    model = Backdoored()
    nn.utils.parametrizations.weight_norm(model.convolution)
    return model


def without(label: int) -> Dataset:
    dataset = make_dataset()
    return dataset.take(dataset.labels != label)


@pytest.mark.parametrize(
    ("model", "clean", "settings", "message"),
    [
        (Backdoored(), make_dataset(), {"layer": "x"}, "'x' does not exist; .* convolutions: 'convolution'"),
        (Backdoored(), make_dataset(), {"layer": "norm"}, "'norm' is a BatchNorm2d, no convolution; .*'convolution'"),
        (Unused(), make_dataset(), {"layer": "spare"}, "'spare' does not run in the forward pass.*'convolution'"),
        (linear_network(), make_dataset(), {}, "no convolution"),
        (parametrised(), make_dataset(), {}, "'convolution' are computed from others"),
        (Backdoored(), without(1), {}, "class class1 has no clean images; give 3 or more"),
        (Backdoored(), make_dataset(n_per_class=2), {}, "class class0 has 2 clean images; give 3"),
        (Backdoored(), make_dataset(classes=1), {}, "of one class"),
        (Backdoored(), make_dataset(classes=4), {}, "tells 3 classes apart, the clean images have 4"),
        (Backdoored(), make_dataset(channels=3), {}, "the model fails on images of shape"),
        (Backdoored(), make_dataset(), {"ranking": "best"}, "no ranking 'best'"),
        (Backdoored(), make_dataset(), {"tolerance": -0.1}, "the tolerance is -0.1"),
        (Backdoored(), make_dataset(), {"held_out": 1}, "the share held out is 1"),
        (Backdoored(), make_dataset(), {"epochs": 0}, "no fine-tuning"),
        (Backdoored(), make_dataset(), {"learning_rate": 0}, "the learning rate is 0"),
        ("model", make_dataset(), {}, "the model is a str"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, clean, settings, message):
    with pytest.raises(UndoorError, match=message) as raised:
        FinePruning(**settings)(model, clean)
    assert "\n" not in str(raised.value)


def test_the_repaired_network_is_written_with_its_curve_and_page(tmp_path):
    clean = make_dataset()
    result = GENTLY(Backdoored(), clean)
    described = Architecture("test_fine_pruning:backdoored", (1, 12, 12), clean.class_names, {"epochs": 3})
    path = tmp_path / "new" / "m.safetensors"
    write_pruned(result, path, described)
    names = ("m-curve.parquet", "m-curve.png", "m-curve.svg", "m.html", "m.json", "m.safetensors")
    assert sorted(file.name for file in path.parent.iterdir()) == list(names)
    loaded, classes = load_model(path, described.network)
    assert classes == clean.class_names
    assert Classifier(loaded, layer="").fingerprint() == result.tuned.fingerprint()
    recipe = read_architecture(path).recipe
    assert recipe["epochs"] == 3
    assert recipe["fine_pruning"]["tolerance"] == 0.04
    assert recipe["fine_pruning"]["seed"] == 0
    pd.testing.assert_frame_equal(pd.read_parquet(path.parent / "m-curve.parquet"), result.curve)
    summary = json.loads((path.parent / "m.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(result.summary()))
    assert summary["pruned"][:2] == [CHANNEL, DEAD]
    assert summary["measured"] is None

    drawn = (path.parent / "m-curve.svg").read_bytes()
    with pytest.raises(UndoorError, match=r"exists already.*--overwrite"):
        write_pruned(result, path, described)
    write_pruned(result, path, described, overwrite=True)
    assert (path.parent / "m-curve.svg").read_bytes() == drawn
    with pytest.raises(UndoorError, match=r"end in \.safetensors"):
        write_pruned(result, tmp_path / "m.pt", described)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs ``undoor prune`` on a backdoored network in a file: exit code, output, errors."""
    clean, test = make_dataset(), make_dataset(seed=1)
    write_parquet(clean, tmp_path / "clean.parquet")
    write_parquet(test, tmp_path / "test.parquet")
    described = Architecture("test_fine_pruning:backdoored", (1, 12, 12), clean.class_names, {})
    save_model(Backdoored(), described, tmp_path / "m.safetensors")
    write_attack(Attack.one_pixel(clean, target="class2", count=5, size=1.0, position=(0, 0)), tmp_path / "attack.json")

    def call(*options):
        arguments = ("--data", tmp_path / "clean.parquet", "--out", tmp_path / "out" / "m2.safetensors")
        network = ("--network", described.network, "--epochs", 1, "--learning-rate", 1e-4)
        command = ["undoor", "prune", tmp_path / "m.safetensors", *arguments, *network, *options]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


def test_the_command_repairs_a_network_and_measures_it(run, tmp_path):
    measuring = ("--attack", tmp_path / "attack.json", "--test", tmp_path / "test.parquet")
    code, out, _ = run(*measuring)
    assert code == 0
    assert "of 5 channels of convolution pruned" in out
    summary = json.loads((tmp_path / "out" / "m2.json").read_text(encoding="utf-8"))
    rates = [summary["measured"][name]["attack_success_rate"] for name in ("before", "pruned", "tuned")]
    assert rates == [1, 0, 0]
    curve = pd.read_parquet(tmp_path / "out" / "m2-curve.parquet")
    assert curve["attack_success_rate"].iloc[[0, 1, 2]].tolist() == [1, 0, 0]
    loaded, _ = load_model(tmp_path / "out" / "m2.safetensors", "test_fine_pruning:backdoored")
    assert success(Classifier(loaded)) == 0

    code, _, err = run()
    assert code == 2
    assert "exists already" in err
    code, out, _ = run("--overwrite", "--test", tmp_path / "test.parquet")
    assert code == 0
    assert "clean accuracy" in out
    assert "attack success" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "x"), "'x' does not exist"),
        (("--attack", "{root}/attack.json"), "add --test DATA"),
        (("--test", "{root}/clean.parquet"), "the same images"),
        (("--mean", "0.5"), "only one of mean and std"),
        (("--tolerance", "2"), "the tolerance is 2.0"),
        (("--ranking", "best"), "no ranking 'best'"),
        (("--out", "{root}/m2.pt"), "end in .safetensors"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line_and_writes_nothing(run, tmp_path, options, message):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*(option.format(root=tmp_path) for option in options))
    assert code == 2
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
