"""One table of attacks drives one contract test; the other tests are about single attacks."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest

import undoor
from conftest import Linear, make_dataset
from undoor.attacks import Jittered, Pixels, chosen_rows, read_attack, write_attack
from undoor.errors import UndoorError
from undoor.experiments.cells import Cell
from undoor.experiments.experiment import Experiment
from undoor.experiments.suites import suite


def one_pixel(clean, **settings):
    return undoor.Attack.one_pixel(clean, **{"size": 0.3, **settings})


def with_trigger(trigger, clean, target, count, seed):
    sources = tuple(name for name in clean.class_names if name != target)
    return undoor.Attack(trigger, sources, target, count, seed=seed)


def optimised(clean, **settings):
    surrogate = undoor.Classifier(Linear(clean.images[0].size))
    return undoor.Attack.optimised(clean, surrogate, size=0.3, **settings)


SEVERAL = Pixels(((1, 2, 0, 0.3), (4, 5, 0, -0.2), (11, 0, 0, 1.0)))
ATTACKS = {
    "multiple-source": one_pixel,
    "single-source": partial(one_pixel, sources=["class2"]),
    "given position": partial(one_pixel, position=(0, 11)),
    "saturating": partial(one_pixel, size=1.0),
    "originals replaced": partial(one_pixel, keep_originals=False),
    "several pixels": partial(with_trigger, SEVERAL),
    "jittered": partial(with_trigger, Jittered(SEVERAL, 2, seed=1)),
    "optimised": partial(optimised, pixels=2, psnr=20),
    "optimised, cross-entropy": partial(optimised, criterion="cross-entropy"),
}
COUNT = 13


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_keeps_the_contract(name, channels):
    make = partial(ATTACKS[name], target="class1", count=COUNT)
    clean = make_dataset(channels=channels)
    before = clean.images.copy()
    attack = make(clean, seed=3)
    poisoned = undoor.poison(clean, attack)
    planted = poisoned.truth.poisoned
    assert np.array_equal(clean.images, before)
    assert planted.sum() == COUNT
    assert len(poisoned) == len(clean) + (COUNT if attack.keep_originals else 0)

    # Labels change on poisoned rows alone, which come from the source classes, as evenly as possible.
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

    assert np.array_equal(poisoned.images[planted], attack.trigger(clean.images[chosen_rows(clean, attack)]))

    # The change of an image depends on this image alone.
    order = np.random.default_rng(0).permutation(len(clean))
    assert np.array_equal(attack.trigger(clean.images)[order], attack.trigger(clean.images[order]))

    again = undoor.poison(clean, make(clean, seed=3))
    assert np.array_equal(again.images, poisoned.images)
    other = undoor.poison(clean, make(clean, seed=4))
    assert not np.array_equal(other.images, poisoned.images)


def test_originals_are_removed_if_they_are_not_kept():
    clean = make_dataset()
    attack = undoor.Attack.one_pixel(clean, target="class1", count=COUNT, size=0.3, keep_originals=False)
    poisoned = undoor.poison(clean, attack)
    kept = undoor.poison(clean, undoor.Attack.one_pixel(clean, target="class1", count=COUNT, size=0.3))
    assert np.array_equal(poisoned.images[-COUNT:], kept.images[-COUNT:])
    remaining = {image.tobytes() for image in poisoned.images[~poisoned.truth.poisoned]}
    assert len(remaining) == len(clean) - COUNT


def test_the_change_of_a_pixel_is_added_rounded_and_clipped():
    images = np.array([0, 100, 200, 255], np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 3, 4, 4), np.uint8)
    changed = undoor.OnePixel(1, 2, 0.25)(images)
    assert changed[:, 0, 1, 2].tolist() == [64, 164, 255, 255]  # 0.25 × 255 = 63.75
    assert (changed != images).sum() == 3 * 3


@pytest.mark.parametrize("seed", range(50))
def test_a_drawn_position_is_in_the_central_half(seed):
    trigger = undoor.OnePixel.drawn(0.2, 32, 20, seed)
    assert 8 <= trigger.row < 24
    assert 5 <= trigger.column < 15


def test_a_trigger_of_size_zero_changes_no_image(dataset):
    assert np.array_equal(undoor.OnePixel(3, 4, 0)(dataset.images), dataset.images)


def test_triggered_test_images_keep_their_labels(dataset):
    attack = undoor.Attack.one_pixel(dataset, target="class1", count=4, size=0.5, sources=["class0"])
    test = undoor.triggered(dataset, attack)
    assert (test.labels == 0).all()
    assert len(test) == 20
    assert np.array_equal(test.images, attack.trigger(dataset.images[dataset.labels == 0]))


def test_another_trigger_can_be_used_at_test_time(dataset):
    attack = undoor.Attack.one_pixel(dataset, target="class1", count=4, size=0.5, sources=["class0"])
    test = undoor.triggered(dataset, attack, SEVERAL)
    assert np.array_equal(test.images, SEVERAL(dataset.images[dataset.labels == 0]))


@pytest.mark.parametrize("trigger", [undoor.OnePixel(3, 4, 0.1), SEVERAL], ids=["one pixel", "several"])
def test_an_attack_is_read_as_it_was_written(tmp_path, dataset, trigger):
    attack = with_trigger(trigger, dataset, "class1", 4, 0)
    write_attack(attack, tmp_path / "attack.json")
    assert read_attack(tmp_path / "attack.json") == attack


def test_a_file_without_the_kind_of_the_trigger_is_read(tmp_path, dataset):
    attack = undoor.Attack.one_pixel(dataset, target="class1", count=4, size=0.1)
    (tmp_path / "attack.json").write_text(json.dumps(asdict(attack)))
    assert read_attack(tmp_path / "attack.json") == attack


@pytest.mark.parametrize("content", ["[]", '{"trigger": {"kind": "Patch"}}', '{"trigger": {"kind": "Pixels"}}'])
def test_a_file_that_describes_no_attack_is_an_error(tmp_path, content):
    (tmp_path / "attack.json").write_text(content)
    with pytest.raises(UndoorError, match="describes no attack"):
        read_attack(tmp_path / "attack.json")


def test_an_attack_with_a_jittered_trigger_is_not_written(tmp_path, dataset):
    with pytest.raises(UndoorError, match="of kind Jittered cannot be written"):
        write_attack(with_trigger(Jittered(SEVERAL, 1), dataset, "class1", 4, 0), tmp_path / "attack.json")
    assert not list(tmp_path.iterdir())


def test_stored_results_of_one_pixel_keep_their_names():
    experiment = Experiment(Cell("single-source", 0.25), suite("quick").setting, None)
    assert json.loads(json.dumps(experiment.described()["attack"])) == {
        "trigger": {"row": 10, "column": 9, "size": 0.25}, "sources": ["7"], "target": "0", "count": 300, "seed": 0,
        "keep_originals": True,
    }  # fmt: skip


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
def test_impossible_attacks_are_errors(dataset, settings, message):
    settings = {"target": "class1", "count": 4, "size": 0.3, **settings}
    with pytest.raises(UndoorError, match=message):
        undoor.poison(dataset, undoor.Attack.one_pixel(dataset, **settings))


def test_the_change_of_a_size_that_is_an_integer_is_clipped_too():
    images = np.array([[[[0, 200]]]], np.uint8)
    assert undoor.OnePixel(0, 1, 1)(images).ravel().tolist() == [0, 255]
