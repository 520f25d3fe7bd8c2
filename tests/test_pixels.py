"""Triggers of several pixels, their visibility, and variations of the trigger at test time."""

import math

import numpy as np
import pytest

import undoor
from undoor.attacks import Jittered, Pixels, linf, psnr, variations
from undoor.errors import UndoorError

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 3, 9, 7)).astype(np.uint8)


def changed_pixels(trigger, images=IMAGES):
    """Return, for each image, the (row, column) of the pixels that the trigger changes."""
    return [set(zip(*np.nonzero((after != before).any(0)), strict=True))
            for before, after in zip(images, trigger(images), strict=True)]  # fmt: skip


@pytest.mark.parametrize("size", [0.05, 0.1, 0.25, 1.0])
def test_equal_changes_of_all_channels_agree_with_one_pixel(size):
    trigger = Pixels(tuple((4, 2, channel, size) for channel in range(3)))
    assert np.array_equal(trigger(IMAGES), undoor.OnePixel(4, 2, size)(IMAGES))


def test_changes_are_added_rounded_and_clipped():
    images = np.array([0, 100, 200, 255], np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 3, 4, 4), np.uint8)
    changed = Pixels(((1, 2, 0, 0.25), (1, 2, 2, -0.25), (3, 3, 1, -1.0)))(images)
    assert changed[:, 0, 1, 2].tolist() == [64, 164, 255, 255]  # 0.25 × 255 = 63.75
    assert changed[:, 2, 1, 2].tolist() == [0, 36, 136, 191]
    assert changed[:, 1, 3, 3].tolist() == [0, 0, 0, 0]
    assert (changed != images).sum() == 3 + 3 + 3


def test_triggers_describe_themselves():
    assert str(undoor.OnePixel(3, 4, 0.25)) == "pixel 3,4 brighter by 0.25"
    two = Pixels(((1, 2, 0, 0.25), (1, 2, 2, -0.25), (3, 3, 1, 0.5)))
    assert str(two) == "pixels 1,2 (channel 0 by +0.25, channel 2 by −0.25), 3,3 (channel 1 by +0.5)"


def test_a_resized_trigger_keeps_ratios_and_signs():
    trigger = Pixels(((0, 0, 0, 0.2), (1, 1, 0, -0.4)))
    assert trigger.resized(0.1).changes == ((0, 0, 0, 0.05), (1, 1, 0, -0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((), "changes no pixel"),
        (((0, 0, 0, 0.1), (0, 0, 0, 0.2)), "twice"),
        (((0, 0, 0, 1.1),), "from −1 to 1"),
        (((0, -1, 0, 0.1),), "count from 0"),
        (((9, 0, 0, 0.1),), "outside images of 3 × 9 × 7"),
        (((0, 0, 3, 0.1),), "reaches channel 3"),
    ],
)
def test_impossible_pixels_are_errors(changes, message):
    with pytest.raises(UndoorError, match=message):
        Pixels(changes)(IMAGES)


def test_visibility_agrees_with_the_closed_form():
    images = np.full((2, 3, 8, 8), 100, np.uint8)
    images[1] = 250
    # The changes are 51 and −25.5 levels. Halves are rounded to even, and 250 + 51 is clipped to 255.
    changed = Pixels(((1, 2, 0, 0.2), (1, 2, 1, -0.1)))(images)
    lowered = [int(images[n, 1, 1, 2]) - int(changed[n, 1, 1, 2]) for n in range(2)]
    assert linf(images, changed) == pytest.approx([51 / 255, lowered[1] / 255])
    for n, raised in enumerate((51, 5)):
        mse = (raised**2 + lowered[n] ** 2) / (3 * 8 * 8)
        assert psnr(images, changed)[n] == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse))
    assert psnr(images, images).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("reach", [1, 2])
def test_jitter_moves_the_whole_trigger_by_every_offset_within_reach(reach):
    images = np.random.default_rng(1).integers(0, 200, (600, 1, 9, 9)).astype(np.uint8)
    trigger = Jittered(Pixels(((4, 4, 0, 0.2), (4, 5, 0, 0.2))), reach)
    moves = set()
    for pixels in changed_pixels(trigger, images):
        (row, column), neighbour = sorted(pixels)
        assert neighbour == (row, column + 1)
        moves.add((int(row) - 4, int(column) - 4))
    assert moves == {(r, c) for r in range(-reach, reach + 1) for c in range(-reach, reach + 1)}
    assert not np.array_equal(trigger(images), Jittered(trigger.pixels, reach, seed=1)(images))


def test_jitter_stays_within_the_image():
    images = np.random.default_rng(1).integers(0, 200, (300, 1, 5, 5)).astype(np.uint8)
    pixels = changed_pixels(Jittered(Pixels(((0, 4, 0, 0.2),)), 1), images)
    assert set.union(*pixels) == {(0, 3), (0, 4), (1, 3), (1, 4)}


@pytest.mark.parametrize(("row", "column"), [(4, 3), (0, 0), (8, 6)])
def test_variations_contain_the_trigger_and_lie_within_the_image(row, column):
    trigger = undoor.OnePixel(row, column, 0.25)
    variation = variations(trigger, (3, 9, 7))
    images = np.full((1, 3, 9, 7), 90, np.uint8)
    assert next(iter(variation.values())) == trigger
    assert variation["size 0.10"] == undoor.OnePixel(row, column, 0.1)
    for name, count in (("with its neighbour", 2), ("2×2 block", 4), ("3×3 block", 9)):
        pixels = changed_pixels(variation[name], images)[0]
        assert len(pixels) == count
        assert (row, column) in pixels
        rows, columns = (np.ptp(axis) for axis in zip(*pixels, strict=True))
        assert (rows + 1) * (columns + 1) == count
        assert set(np.unique(variation[name](images))) == {90, 154}
    with pytest.raises(UndoorError, match="lies at no fixed pixels"):
        variations(variation["moved by up to 1"], (3, 9, 7))


def test_blocks_that_overlap_keep_the_changes_of_the_trigger():
    trigger = Pixels(((4, 3, 0, 0.2), (4, 4, 0, -0.2)))
    changes = {change[:3]: change[3] for change in variations(trigger, (1, 9, 7))["3×3 block"].changes}
    assert len(changes) == 12
    assert (changes[4, 3, 0], changes[4, 4, 0]) == (0.2, -0.2)
