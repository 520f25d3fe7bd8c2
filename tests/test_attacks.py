"""One table of attacks drives one contract test; the rest is what single attacks promise beyond it."""

import numpy as np
import pytest

import undoor
from conftest import make_dataset
from undoor.attacks import read_attack, write_attack
from undoor.errors import UndoorError

ATTACKS = {
    "multiple-source": {},
    "single-source": {"sources": ["class2"]},
    "given position": {"position": (0, 11)},
    "saturating": {"size": 1.0},
    "originals replaced": {"keep_originals": False},
}
COUNT = 13


@pytest.fixture(params=ATTACKS, ids=list(ATTACKS))
def settings(request):
    return {"target": "class1", "count": COUNT, "size": 0.3, "seed": 3, **ATTACKS[request.param]}


@pytest.mark.parametrize("channels", [1, 3])
def test_contract(settings, channels):
    clean = make_dataset(channels=channels)
    before = clean.images.copy()
    attack = undoor.Attack.one_pixel(clean, **settings)
    poisoned = undoor.poison(clean, attack)
    planted = poisoned.truth.poisoned
    assert np.array_equal(clean.images, before)
    assert planted.sum() == COUNT
    assert len(poisoned) == len(clean) + (COUNT if attack.keep_originals else 0)

    # Labels change on poisoned rows alone, and come from the sources, as evenly as possible.
    changed = poisoned.labels != poisoned.truth.original_labels
    assert np.array_equal(changed, planted)
    assert set(poisoned.labels[planted]) == {1}
    shares = np.bincount(poisoned.truth.original_labels[planted], minlength=3)
    sources = [clean.class_names.index(name) for name in attack.sources]
    assert shares.sum() == shares[sources].sum()
    assert shares[sources].max() - shares[sources].min() <= 1

    # Every poisoned image is a source image with the test-time trigger.
    originals = {image.tobytes() for image in attack.trigger(clean.images)}
    assert all(image.tobytes() in originals for image in poisoned.images[planted])
    untouched = {image.tobytes() for image in clean.images}
    assert all(image.tobytes() in untouched for image in poisoned.images[~planted])
    assert poisoned.images.dtype == np.uint8

    again = undoor.poison(clean, undoor.Attack.one_pixel(clean, **settings))
    assert np.array_equal(again.images, poisoned.images)
    other = undoor.poison(clean, undoor.Attack.one_pixel(clean, **{**settings, "seed": 4}))
    assert not np.array_equal(other.images, poisoned.images)


def test_replaced_originals_are_gone():
    clean = make_dataset()
    attack = undoor.Attack.one_pixel(clean, target="class1", count=COUNT, size=0.3, keep_originals=False)
    poisoned = undoor.poison(clean, attack)
    kept = undoor.poison(clean, undoor.Attack.one_pixel(clean, target="class1", count=COUNT, size=0.3))
    assert np.array_equal(poisoned.images[-COUNT:], kept.images[-COUNT:])
    remaining = {image.tobytes() for image in poisoned.images[~poisoned.truth.poisoned]}
    assert len(remaining) == len(clean) - COUNT


def test_pixel_is_added_rounded_and_clipped():
    images = np.array([0, 100, 200, 255], np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 3, 4, 4), np.uint8)
    out = undoor.OnePixel(1, 2, 0.25)(images)
    assert out[:, 0, 1, 2].tolist() == [64, 164, 255, 255]  # 0.25 × 255 = 63.75
    assert (out != images).sum() == 3 * 3


@pytest.mark.parametrize("seed", range(50))
def test_drawn_position_lies_in_the_central_half(seed):
    trigger = undoor.OnePixel.drawn(0.2, 32, 20, seed)
    assert 8 <= trigger.row < 24
    assert 5 <= trigger.column < 15


def test_size_zero_flips_labels_alone(dataset):
    assert np.array_equal(undoor.OnePixel(3, 4, 0)(dataset.images), dataset.images)


def test_triggered_test_images_keep_their_labels(dataset):
    attack = undoor.Attack.one_pixel(dataset, target="class1", count=4, size=0.5, sources=["class0"])
    test = undoor.triggered(dataset, attack)
    assert (test.labels == 0).all()
    assert len(test) == 20
    assert np.array_equal(test.images, attack.trigger(dataset.images[dataset.labels == 0]))


def test_attack_survives_its_file(tmp_path, dataset):
    attack = undoor.Attack.one_pixel(dataset, target="class1", count=4, size=0.1)
    write_attack(attack, tmp_path / "attack.json")
    assert read_attack(tmp_path / "attack.json") == attack
    (tmp_path / "attack.json").write_text("[]")
    with pytest.raises(UndoorError, match="describes no attack"):
        read_attack(tmp_path / "attack.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": -0.1}, "from 0 to 1"),
        ({"size": 1.1}, "from 0 to 1"),
        ({"count": 0}, "at least 1"),
        ({"count": 1000}, "fewer than the 500 to be poisoned"),
        ({"target": "nobody"}, "no class 'nobody'"),
        ({"sources": ["class1"]}, "none that is the target"),
        ({"sources": ["nobody"]}, "no class 'nobody'"),
        ({"position": (12, 0)}, "outside images of 12×12"),
        ({"position": (-1, 0)}, "count rows and columns from 0"),
    ],
)
def test_impossible_attacks_are_told(dataset, settings, message):
    settings = {"target": "class1", "count": 4, "size": 0.3, **settings}
    with pytest.raises(UndoorError, match=message):
        undoor.poison(dataset, undoor.Attack.one_pixel(dataset, **settings))
