"""The optimised trigger agrees with brute force and closed forms, and uses planted pixels."""

import numpy as np
import pytest
import torch

import undoor
from conftest import Linear, make_dataset
from undoor.attacks import Pixels, chosen_rows, linf, psnr
from undoor.attacks.optimised import contrast, optimised, signs
from undoor.errors import UndoorError


def noisy(channels=3, height=5, width=4, n=300, seed=0):
    """Return images whose pixels vary more in lower rows, and whose channels vary together."""
    generator = np.random.default_rng(seed)
    shape = (n, channels, height, width)
    common = generator.normal(size=(n, 1, height, width))
    values = 128 + (common + 0.3 * generator.normal(size=shape)) * np.linspace(4, 30, height)[:, None]
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


ALL = np.ones(300, bool)
"""All images of ``noisy`` may get the trigger."""


def test_contrast_is_the_mahalanobis_length_of_the_mean_change():
    images = noisy()
    images[:, :, 0, 0] = 250  # a raised channel is clipped there
    sources = images[:100]
    found = contrast(images, sources, 0.1)
    ways = signs(3)
    assert found.shape == (26, 5, 4)
    for number, row, column in ((0, 0, 0), (3, 0, 0), (8, 2, 1), (25, 4, 3)):
        trigger = Pixels(tuple((row, column, k, 0.1 * sign) for k, sign in enumerate(ways[number]) if sign))
        change = (trigger(sources)[:, :, row, column] / 255 - sources[:, :, row, column] / 255).mean(0)
        covariance = np.cov(images[:, :, row, column].T / 255, bias=True) + np.eye(3) / 255**2 / 12
        expected = np.sqrt(change @ np.linalg.solve(covariance, change))
        assert found[number, row, column] == pytest.approx(expected, rel=1e-6)


class Weighted(torch.nn.Module):
    """A network whose features are the values of the pixels, each times a weight."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float32).flatten()
        self.last = torch.nn.Linear(len(self.weights), 3)

    def forward(self, images):
        return self.last(images.flatten(1) * self.weights)


UNIFORM = {channels: undoor.Classifier(Weighted(np.ones((channels, 5, 4)))) for channels in (1, 3)}


def test_the_prominence_is_the_highest_of_all_candidates():
    images = noisy(channels=1)
    weights = np.random.default_rng(5).uniform(0.2, 1, (5, 4))
    prominence = {}
    for row in range(5):
        for column in range(4):
            variance = images[:, 0, row, column].var() / 255**2 + 1 / 255**2 / 12
            for size in (0.05, -0.05):
                trigger = Pixels(((row, column, 0, size),))
                change = (trigger(images)[:, 0, row, column] / 255 - images[:, 0, row, column] / 255).mean()
                share = change**2 / (variance + change**2)
                prominence[trigger] = share * abs(change) * weights[row, column]
    chosen = optimised(images, ALL, undoor.Classifier(Weighted(weights[None])), size=0.05)
    assert prominence[chosen] == pytest.approx(max(prominence.values()), rel=1e-5)
    assert prominence[chosen] > np.sort(list(prominence.values()))[-3]  # both signs of other pixels are worse


def test_a_pixel_that_the_network_ignores_is_not_chosen():
    images, weights = noisy(channels=1), np.ones((1, 5, 4))
    images[:, 0, 0, 1] = 50
    assert optimised(images, ALL, UNIFORM[1], size=0.1).changes[0][:2] == (0, 1)
    weights[0, 0, 1] = 0
    assert optimised(images, ALL, undoor.Classifier(Weighted(weights)), size=0.1).changes[0][:2] != (0, 1)


def test_channels_that_vary_together_are_changed_in_opposite_directions():
    changes = optimised(noisy(), ALL, UNIFORM[3], size=0.02).changes
    assert {change for *_, change in changes} == {0.02, -0.02}


def test_a_change_that_is_clipped_away_is_not_chosen():
    images = noisy(channels=1)
    images[:, 0, 2, 2] = 0
    assert optimised(images, ALL, UNIFORM[1], size=0.1).changes == ((2, 2, 0, 0.1),)
    images[:, 0, 2, 2] = 255
    assert optimised(images, ALL, UNIFORM[1], size=0.1).changes == ((2, 2, 0, -0.1),)


class Curved(torch.nn.Module):
    """A network whose logits are not linear in the image, so that the first order is not exact."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.nn.Linear(20, 6), torch.nn.Linear(6, 3)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator)

    def forward(self, images):
        return self.last(torch.tanh(self.first(images.flatten(1))))


def test_the_cross_entropy_is_the_lowest_of_all_candidates():
    images, model = noisy(channels=1), Curved()
    classifier = undoor.Classifier(model)
    settings = {"size": 0.2, "criterion": "cross-entropy", "target": 2}
    chosen = optimised(images, ALL, classifier, **settings)

    def loss(trigger):
        with torch.no_grad():
            logits = model(torch.tensor(trigger(images)) / 255)
        return float(torch.nn.functional.cross_entropy(logits, torch.full((len(images),), 2)))

    candidates = [Pixels(((row, column, 0, size),)) for row in range(5) for column in range(4) for size in (0.2, -0.2)]
    assert loss(chosen) == pytest.approx(min(map(loss, candidates)), rel=1e-6)

    # Of two pixels, the first is the same, and the second is the best beside it.
    two = optimised(images, ALL, classifier, pixels=2, **settings)
    assert two.changes[0] == chosen.changes[0]
    pairs = [chosen.joined(c.changes) for c in candidates if c.changes[0][:2] != chosen.changes[0][:2]]
    assert loss(two) == pytest.approx(min(map(loss, pairs)), rel=1e-6)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("lowest", [26.0, 28.0])
def test_bounds_hold_on_the_changed_images(lowest):
    images = noisy()
    free, bound = (optimised(images, ALL, UNIFORM[3], size=0.2, pixels=2, psnr=limit) for limit in (None, lowest))
    assert len(free.changes) == 6
    assert len(bound.changes) < 6
    assert len({change[:2] for change in bound.changes}) == 2
    assert psnr(images, bound(images)).min() >= lowest > psnr(images, free(images)).min()
    assert linf(images, bound(images)).max() == pytest.approx(51 / 255)
    within_linf = optimised(images, ALL, UNIFORM[3], size=0.2, linf=51 / 255)
    assert linf(images, within_linf(images)).max() <= 51 / 255


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"linf": 0.19}, "1 pixel cannot be changed by 0.2 within ℓ∞ ≤ 0.19; lower"),
        ({"psnr": 60, "linf": 0.3}, "ℓ∞ ≤ 0.3 and PSNR ≥ 60 dB; lower the size"),
        ({"psnr": 30, "pixels": 4}, "4 pixels cannot be changed"),
        ({"size": 0.0}, "above 0"),
        ({"pixels": 21}, "from 1 to 20"),
        ({"pixels": 0}, "from 1 to 20"),
        ({"criterion": "luck"}, "no criterion 'luck'; choose"),
    ],
)
def test_bounds_that_cannot_be_kept_are_an_error(settings, message):
    with pytest.raises(UndoorError, match=message):
        optimised(noisy(), ALL, UNIFORM[3], **{"size": 0.2, **settings})


def test_an_attack_keeps_its_bounds_on_the_poisoned_images():
    clean = make_dataset(channels=3)
    surrogate = undoor.Classifier(Linear(3 * 144))
    attack = undoor.Attack.optimised(clean, surrogate, target="class1", count=10, size=0.3, psnr=32, sources=["class0"])
    poisoned = undoor.poison(clean, attack)
    originals = clean.images[chosen_rows(clean, attack)]
    assert psnr(originals, poisoned.images[-10:]).min() >= 32
    with pytest.raises(UndoorError, match="no class 'nobody'"):
        undoor.Attack.optimised(clean, surrogate, target="nobody", count=10, size=0.3)
