import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from undoor.data.dataset import Dataset, row_ids
from undoor.defenses.post_training import Descent, RandomDirection, ReverseEngineering
from undoor.defenses.post_training.perturbations import clipped
from undoor.errors import UndoorError
from undoor.networks.classifier import Classifier
from undoor.report.inspection import write_inspection

CLASSES, SIZE = 6, 8
SOURCE, TARGET, PIXEL = 4, 1, 9
SCALE = 60.0
ONCE = {"share": 1.0, "batch_size": 128, "seed": 0}

# Orthonormal templates that are zero at the pixel of the trigger.
_drawn = np.random.default_rng(0).normal(size=(SIZE * SIZE, CLASSES))
_drawn[PIXEL] = 0
TEMPLATES = np.linalg.qr(_drawn)[0].T.astype(np.float32)


class Planted(torch.nn.Module):
    """Linear in the templates. With a backdoor, the pixel raises the logit of the target on images of the sources."""

    def __init__(self, sources=()):
        super().__init__()
        self.linear = torch.nn.Linear(SIZE * SIZE, CLASSES)
        self.linear.weight.data = SCALE * torch.tensor(TEMPLATES)
        self.linear.bias.data.zero_()
        self.drop = torch.nn.Dropout(0.5)
        self.sources = list(sources)

    def forward(self, images):
        x = images.flatten(1)
        logits = self.linear(self.drop(x))
        if self.sources:
            recognised = (logits[:, self.sources].amax(1) - 0.5 * SCALE).relu().clamp(max=0.1 * SCALE) / (0.1 * SCALE)
            bonus = 4 * SCALE * recognised * x[:, PIXEL]
            logits = logits + bonus[:, None] * torch.eye(CLASSES)[TARGET]
        return logits


def images_of(per_class=12, seed=0):
    """Return images near the template of their class, around a grey that is orthogonal to all templates."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), per_class)
    grey = np.full(SIZE * SIZE, 0.5)
    grey = grey - TEMPLATES.T @ (TEMPLATES @ grey)
    grey[PIXEL] = 0.1
    strength = 1 + generator.uniform(-0.05, 0.05, len(labels))
    pixels = grey + strength[:, None] * TEMPLATES[labels] + 0.01 * generator.normal(size=(len(labels), SIZE * SIZE))
    images = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8).reshape(-1, 1, SIZE, SIZE)
    return Dataset(images, labels, tuple(f"class/{k}" for k in range(CLASSES)), row_ids(len(labels)))


@pytest.fixture(scope="module")
def data():
    return images_of()


def sought(model, data, share=1.0, search=None, batch_size=128, pairs=None):
    classifier = Classifier(model)
    pairs = pairs or list(permutations(range(CLASSES), 2))
    images = {k: classifier.scale(data.images[data.labels == k]) for k in range(CLASSES)}
    with classifier.frozen() as forward:
        return (search or Descent(steps=80))(forward, images, pairs, share=share, batch_size=batch_size, seed=0)


def test_between_half_spaces_the_smallest_perturbation_is_the_distance(data):
    torch.manual_seed(0)
    weights = torch.tensor(TEMPLATES[:2]) * SCALE
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE * SIZE, 2, bias=False))
    model[1].weight.data = weights
    classifier = Classifier(model)
    image = classifier.scale(data.images[data.labels == 0][:1])
    with classifier.frozen() as forward:
        result = Descent()(forward, {0: image}, [(0, 1)], **ONCE)
    normal = (TEMPLATES[1] - TEMPLATES[0]).astype(np.float64)
    distance = -normal @ image.numpy().ravel() / np.linalg.norm(normal)
    assert distance <= result.norms[0] <= 1.03 * distance
    assert result.norms[0] == pytest.approx(np.linalg.norm(result.patterns[0]), rel=1e-5)
    assert result.patterns[0].ravel() @ normal / np.linalg.norm(normal) / result.norms[0] > 0.99


def test_black_and_white_pixels_can_change():
    """Versions of PyTorch differ in the gradient of ``clamp`` there."""
    values = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1], requires_grad=True)
    clipped(values).sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    assert torch.equal(clipped(values), values.clamp(0, 1))
    image = torch.zeros(1, 1, 2, 2)
    result = Descent()(lambda x: torch.stack([0 * x[:, 0, 0, 0], x[:, 0, 1, 1] - 0.2], 1), {0: image}, [(0, 1)], **ONCE)
    assert result.reached.all()
    assert result.norms[0] == pytest.approx(0.2, rel=0.03)


def test_a_perturbation_sends_the_share_that_is_reported(data):
    model = Planted([SOURCE])
    result = sought(model, data, share=0.75)
    assert result.reached.all()
    assert (result.shares >= 0.75).all()
    for row, (s, t) in enumerate(permutations(range(CLASSES), 2)):
        moved = data.images[data.labels == s] / np.float32(255) + result.patterns[row]
        decided = model.eval()(torch.tensor(moved).clamp(0, 1)).argmax(1)
        assert float((decided == t).float().mean()) == pytest.approx(result.shares[row])


def test_neither_the_batches_nor_the_scale_of_the_logits_matter(data):
    whole, parted = sought(Planted([SOURCE]), data), sought(Planted([SOURCE]), data, batch_size=5)
    np.testing.assert_allclose(parted.norms, whole.norms, rtol=1e-3)
    pair = [(SOURCE, TARGET)]
    scaled = sought(torch.nn.Sequential(Planted([SOURCE]), Times(7)), data, pairs=pair)
    assert scaled.norms[0] == pytest.approx(sought(Planted([SOURCE]), data, pairs=pair).norms[0], rel=0.1)


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return self.factor * logits


@pytest.mark.parametrize("rule", ["A", "B"])
@pytest.mark.parametrize("sources", [(SOURCE,), ()])
def test_a_backdoor_of_one_source_is_detected(data, rule, sources):
    inspection = ReverseEngineering(rule=rule)(Classifier(Planted(sources), layer="linear"), data)
    if not sources:
        assert inspection.verdict == "clean"
        assert inspection.target is None
        assert inspection.sources == ()
        return
    assert inspection.verdict == "backdoored"
    assert inspection.target == data.class_names[TARGET]
    assert inspection.sources == (data.class_names[SOURCE],)
    pattern = inspection.perturbation(data.class_names[SOURCE], data.class_names[TARGET])
    assert np.abs(pattern).argmax() == PIXEL


def test_a_backdoor_of_many_sources_is_detected(data):
    sources = [k for k in range(CLASSES) if k != TARGET]
    inspection = ReverseEngineering()(Classifier(Planted(sources), layer="linear"), data)
    assert inspection.verdict == "backdoored"
    assert inspection.target == data.class_names[TARGET]
    assert set(inspection.sources) == {data.class_names[k] for k in sources}


def test_a_random_direction_is_far_longer(data):
    model = Planted([SOURCE])
    random, smallest = sought(model, data, search=RandomDirection()), sought(model, data)
    assert (random.norms > 3 * smallest.norms).all()
    assert (random.norms <= 1.01 * SIZE * 2).all()


@pytest.mark.parametrize(("seed", "reached"), [(1, True), (0, False)])
def test_the_norm_of_a_random_direction_is_the_smallest_along_it(seed, reached):
    """A network that sees one pixel alone changes its decision when that pixel reaches 0.25, in whatever direction."""
    model = OnePixel()
    image = torch.zeros(1, 1, SIZE, SIZE)
    result = RandomDirection(steps=40, last_pace=1e-3)(model, {0: image}, [(0, 1)], **(ONCE | {"seed": seed}))
    assert result.reached[0] == reached
    pixel = result.patterns[0].ravel()[PIXEL]
    assert pixel == pytest.approx(0.25, rel=1e-2) if reached else pixel < 0.25


class OnePixel(torch.nn.Module):
    def forward(self, images):
        x = images.flatten(1)[:, PIXEL]
        return torch.stack([torch.full_like(x, 0.25), x], dim=1)


def test_an_inspection_is_repeatable_and_leaves_the_model_as_it_was(data):
    model = Planted([SOURCE])
    model.train()
    model.drop.eval()
    model.linear.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (ReverseEngineering()(Classifier(model, layer="linear"), data) for _ in range(2))
    pd.testing.assert_frame_equal(first.pairs, second.pairs)
    np.testing.assert_array_equal(first.perturbations, second.perturbations)
    assert first.inferences["A"].p == second.inferences["A"].p
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.drop.training, model.linear.training) == (True, False, True)
    assert model.linear.weight.requires_grad
    assert not model.linear.bias.requires_grad
    assert model.linear.weight.grad is None


def test_the_inspection_is_written_with_its_page_and_pictures(data, tmp_path):
    inspection = ReverseEngineering()(Classifier(Planted([SOURCE]), layer="linear"), data)
    write_inspection(inspection, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == json.loads(json.dumps(inspection.summary()))
    assert summary["verdict"] == "backdoored"
    assert summary["inferences"]["B"]["closest_pair"] == ["class/4", "class/1"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "pairs.parquet"), inspection.pairs)
    written = load_file(tmp_path / "out" / "perturbations.safetensors")["perturbations"]
    np.testing.assert_array_equal(written, inspection.perturbations)
    (picture,) = (tmp_path / "out").glob("*.png")
    assert picture.name == "perturbation-class_44-class_11.png"
    pixels = np.array(Image.open(picture))
    assert pixels.shape == (160, 20 * 26)
    assert pixels[20, 20] == 255  # the pixel, amplified
    example, moved = pixels[:, 180:340:20][::20], pixels[:, 360:520:20][::20]
    pattern = inspection.perturbation("class/4", "class/1")[0]
    np.testing.assert_allclose(moved, np.clip(example + 255 * pattern, 0, 255), atol=0.51)
    with pytest.raises(UndoorError, match="overwrite"):
        write_inspection(inspection, tmp_path / "out")
    write_inspection(inspection, tmp_path / "out", overwrite=True)


class Flat(Planted):
    def forward(self, images):
        return super().forward((images > 0.5).float()) + 0 * images.sum()


class Detached(Planted):
    def forward(self, images):
        return super().forward(images).detach()


class Broken(Planted):
    def forward(self, images):
        logits = super().forward(images)
        return logits + torch.sqrt(0 * images.sum())  # the gradient of the root is not finite


@pytest.mark.parametrize(
    ("model", "message"), [(Flat, "gradients vanish"), (Detached, "no gradient flows"), (Broken, "not finite")]
)
def test_networks_without_gradients_are_refused(data, model, message):
    flat = replace(data, images=np.where(data.images > 127, 255, 0).astype(np.uint8)) if model is Flat else data
    with pytest.raises(UndoorError, match=message):
        ReverseEngineering()(Classifier(model(), layer="linear"), flat)


def test_data_that_do_not_fit_are_refused(data):
    classifier = Classifier(Planted(), layer="linear")
    method = ReverseEngineering()
    without = data.take(data.labels != 3)
    with pytest.raises(UndoorError, match="no clean image of class class/3"):
        method(classifier, without)
    wrong = replace(data, labels=np.where(data.labels == 3, 2, np.where(data.labels == 2, 3, data.labels)))
    with pytest.raises(UndoorError, match="class class/2 is decided as such"):
        method(classifier, wrong)
    two = data.take(data.labels < 2)
    with pytest.raises(UndoorError, match="with 2 classes"):
        method(classifier, replace(two, class_names=two.class_names[:2]))
    five = data.take(data.labels < 5)
    with pytest.raises(UndoorError, match="tells 6 classes apart, the data set has 5"):
        method(classifier, replace(five, class_names=five.class_names[:5]))


@pytest.mark.parametrize("settings", [{"images": 0}, {"share": 0}, {"share": 1.1}, {"level": 0}, {"rule": "C"}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UndoorError):
        ReverseEngineering(**settings)
