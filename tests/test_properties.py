"""What must hold whatever is given: attacks, filters and what is kept in files.

The examples are drawn by hypothesis, the same ones in every run.
"""

import json
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import undoor
from conftest import always
from undoor.attacks import OnePixel, poison, read_attack, triggered, write_attack
from undoor.attacks.pixels import Pixels
from undoor.attacks.poisoning import Attack, chosen_rows
from undoor.data.dataset import Dataset, row_ids
from undoor.data.readers.parquet import write_parquet
from undoor.data.readers.subset import write_subset
from undoor.errors import UndoorError
from undoor.experiments.store import Store, digest
from undoor.filters import Average, Gaussian, Median, Noise, Quantise, parse_filter
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.reading import read_findings, read_ids
from undoor.findings.tables import CLUSTER_COLUMNS, REPORT_COLUMNS, SAMPLE_COLUMNS, curve_table

# Attacks


@st.composite
def datasets(draw):
    """Up to 24 small images, grey or RGB, of two to four classes, each with an image or more."""
    classes, channels = draw(st.integers(2, 4)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    rest = draw(st.lists(st.integers(0, classes - 1), max_size=20))
    labels = np.array(draw(st.permutations([*range(classes), *rest])), dtype=np.int64)
    images = draw(hnp.arrays(np.uint8, (len(labels), channels, height, width)))
    return Dataset(images, labels, tuple("abcd"[:classes]), row_ids(len(labels)))


changes = st.floats(-1, 1)


@st.composite
def attacks(draw, data):
    """An attack that is possible on the data, of one pixel or of several."""
    _, channels, height, width = data.images.shape
    target, *sources = draw(st.permutations(data.class_names))
    sources = sources[: draw(st.integers(1, len(sources)))]
    places = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1), st.integers(0, channels - 1))
    if draw(st.booleans()):
        trigger = OnePixel(*draw(places)[:2], draw(st.floats(0, 1)))
    else:
        trigger = Pixels(
            tuple((*p, draw(changes)) for p in draw(st.lists(places, min_size=1, max_size=3, unique=True)))
        )
    fewest = min(int((data.labels == data.class_names.index(name)).sum()) for name in sources)
    count = draw(st.integers(1, fewest * len(sources)))
    return Attack(trigger, tuple(sources), target, count, draw(st.booleans()), draw(st.integers(0, 9)))


@given(st.data())
@always(80)
def test_poison_is_what_was_asked_for_and_nothing_else(data):
    clean = data.draw(datasets())
    attack = data.draw(attacks(clean))
    images, labels = clean.images.copy(), clean.labels.copy()
    rows = chosen_rows(clean, attack)
    found = poison(clean, attack)
    poisoned, target = found.truth.poisoned, clean.class_names.index(attack.target)

    assert poisoned.sum() == attack.count == len(set(rows.tolist()))
    assert len(found) == len(clean) + attack.count * attack.keep_originals
    assert (found.labels[poisoned] == target).all()
    assert set(found.truth.original_labels[poisoned]) <= {clean.class_names.index(name) for name in attack.sources}
    assert np.array_equal(found.labels[~poisoned], found.truth.original_labels[~poisoned])
    left = np.arange(len(clean)) if attack.keep_originals else np.setdiff1d(np.arange(len(clean)), rows)
    assert np.array_equal(found.images[~poisoned], clean.images[left])
    assert np.array_equal(found.labels[~poisoned], clean.labels[left])

    # Only the places of the trigger change, by what was asked for up to rounding and the ends of the range.
    before, after = clean.images[rows].astype(float), found.images[poisoned].astype(float)
    asked = np.zeros(before.shape[1:])
    if isinstance(attack.trigger, OnePixel):
        asked[:, attack.trigger.row, attack.trigger.column] = attack.trigger.size
    else:
        for row, column, channel, change in attack.trigger.changes:
            asked[channel, row, column] = change
    assert np.abs(after - np.clip(before + 255 * asked, 0, 255)).max() <= 0.5 + 1e-9
    assert np.array_equal(after[:, asked == 0], before[:, asked == 0])

    again = poison(clean, attack)
    assert found.fingerprint() == again.fingerprint()
    assert np.array_equal(found.truth.poisoned, again.truth.poisoned)
    assert np.array_equal(clean.images, images)
    assert np.array_equal(clean.labels, labels)
    shown = triggered(clean, attack)
    assert set(shown.labels) <= {clean.class_names.index(name) for name in attack.sources}
    assert np.array_equal(shown.images, attack.trigger(clean.take(np.isin(clean.ids, shown.ids)).images))


@given(st.data())
@always(40)
def test_an_attack_is_read_as_it_was_written(data):
    attack = data.draw(attacks(data.draw(datasets())))
    with folder() as here:
        write_attack(attack, here / "attack.json")
        assert read_attack(here / "attack.json") == attack


@given(st.data(), st.floats(0, 1))
@always(30)
def test_a_resized_trigger_has_that_size_and_its_proportions(data, size):
    clean = data.draw(datasets())
    trigger = data.draw(attacks(clean)).trigger
    if isinstance(trigger, OnePixel):
        assert trigger.resized(size).size == size
        return
    given_changes = np.array([change for *_, change in trigger.changes])
    if not np.abs(given_changes).max() > 0:
        with pytest.raises(UndoorError, match="cannot be enlarged"):
            trigger.resized(size)
        return
    resized = np.array([change for *_, change in trigger.resized(size).changes])
    assert np.abs(resized).max() == pytest.approx(size)
    assert resized == pytest.approx(given_changes * (size / np.abs(given_changes).max()))


# Filters


filters = st.one_of(
    st.builds(Average, st.integers(2, 5), st.sampled_from(["replicate", "zero"])),
    st.builds(Median, st.integers(2, 5)),
    st.builds(Gaussian, st.floats(0.3, 3)),
    st.builds(Noise, st.floats(0.5, 255), st.integers(0, 9)),
    st.builds(Quantise, st.integers(2, 256)),
)
pictures = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 8), st.integers(1, 8))
).map(lambda pixels: torch.from_numpy(pixels).float() / 255)


@given(filters, pictures)
@always(60)
def test_filters_keep_shape_and_range_and_see_one_image_at_a_time(h, images):
    given_images = images.clone()
    filtered = h(images)
    assert filtered.shape == images.shape
    assert filtered.dtype == images.dtype
    assert float(filtered.min()) >= -1e-6
    assert float(filtered.max()) <= 1 + 1e-6
    assert torch.equal(images, given_images)
    alone = torch.cat([h(image[None]) for image in images])
    assert torch.allclose(alone, filtered, atol=1e-6)
    assert torch.allclose(h(images.flip(0)), filtered.flip(0), atol=1e-6)


@given(filters.filter(lambda h: not isinstance(h, Noise) and getattr(h, "edge", "") != "zero"), pictures)
@always(50)
def test_filters_keep_constants_and_commute_with_the_order_of_channels(h, images):
    level = images.flatten()[0]
    constant = torch.full_like(images, float(level))
    within = 0.5 / (h.levels - 1) if isinstance(h, Quantise) else 0.0
    assert (h(constant) - constant).abs().max() <= within + 1e-6
    assert torch.allclose(h(images.flip(1)), h(images).flip(1), atol=1e-6)


@given(st.text(alphabet="avergmdinoisqutz:0123456789.-+e ", max_size=20))
@always(150)
def test_a_text_names_a_filter_or_none(text):
    try:
        h = parse_filter(text)
    except UndoorError:
        return
    assert h(torch.rand(1, 1, 3, 3)).shape == (1, 1, 3, 3)


# Files


@contextmanager
def folder():
    """A new folder for every example, which a fixture of pytest is not."""
    with TemporaryDirectory() as name:
        yield Path(name)


def encodable(value):
    """Whether UTF-8 can hold it: lone surrogates it cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(encodable)


@given(st.dictionaries(st.text(max_size=5).filter(encodable), plain, max_size=4), st.randoms(use_true_random=False))
@always(60)
def test_a_result_is_read_as_it_was_written_and_named_by_its_content(result, random):
    with folder() as here:
        assert Store(here).write("findings", "a", result) == result
        assert Store(here).read("findings", "a") == result
        names = list(result)
        random.shuffle(names)
        turned = {name: result[name] for name in names}
        assert digest(turned) == digest(result)
        assert Store(here).write("findings", "b", turned) == result
        assert Store(here).path("findings", "a").read_bytes() == Store(here).path("findings", "b").read_bytes()
        assert digest({**result, "more": 1}) != digest({**result, "more": 2})


names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cf")), min_size=1, max_size=6)


@given(
    st.lists(
        st.tuples(names, st.integers(0, 1), st.floats(0, 9), st.booleans()),
        min_size=1,
        max_size=12,
        unique_by=lambda s: s[0],
    )
)
@always(8)
def test_findings_are_read_as_they_were_written(drawn):
    ids, labels, scores, flagged = (list(column) for column in zip(*drawn, strict=True))
    rows = [(i, k, 1 - k, 0, s, f, k, s, -s) for i, k, s, f in zip(ids, labels, scores, flagged, strict=True)]
    label = labels[0]  # a cluster is one of samples
    clusters = pd.DataFrame([(label, "äb"[label], 0, 1, 3, 2, 0.5, 0.7, [0, 1], True)], columns=list(CLUSTER_COLUMNS))
    findings = Findings(
        provenance=Provenance(defense="ci", method_version=4, settings={"seed": 0}, seed=3, seconds={"evidence": 1.5}),
        samples=pd.DataFrame(rows, columns=[*SAMPLE_COLUMNS, *REPORT_COLUMNS]),
        clusters=clusters,
        class_names=("ä", "b"),
        threshold=0.5,
        curves=curve_table([(0, 1, 2, 1, 3.5)]),
        image_filter="average:2",
    )
    with folder() as here:
        findings.write(here, "<p>")
        again = read_findings(here)
        assert read_ids(here) == (ids, [i for i, f in zip(ids, flagged, strict=True) if not f])
        for text, kind in (("keep.txt", False), ("drop.txt", True)):
            lines = (here / text).read_text(encoding="utf-8").split("\n")[:-1]
            assert lines == [i for i, f in zip(ids, flagged, strict=True) if f == kind]
    for table in ("samples", "clusters", "curves"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(findings, table), check_dtype=False)
    assert again.summary() == findings.summary()
    assert (again.verdict, again.classes_flagged) == (findings.verdict, findings.classes_flagged)


@given(st.data())
@always(20)
def test_data_sets_survive_their_files(data):
    clean = data.draw(datasets())
    with folder() as here:
        write_parquet(poison(clean, data.draw(attacks(clean))), here / "poisoned.parquet")
        write_parquet(clean, here / "plain.parquet")
        np.savez(
            here / "a.npz",
            images=clean.images,
            labels=clean.labels,
            class_names=np.array(clean.class_names),
            ids=clean.ids,
        )
        poisoned = undoor.read(here / "poisoned.parquet")
        assert poisoned.truth.poisoned.any()
        for read in (undoor.read(here / "plain.parquet"), undoor.read(here / "a.npz")):
            assert read.fingerprint() == clean.fingerprint()
            assert np.array_equal(read.ids, clean.ids)
        # What is kept of it keeps its order and its bytes.
        kept = sorted(data.draw(st.sets(st.sampled_from(clean.ids.tolist()), min_size=1)), key=int)
        write_subset(str(here / "plain.parquet"), clean.ids.tolist(), kept, here / "out")
        again = undoor.read(here / "out")
        rows = [int(name) for name in kept]
        assert np.array_equal(again.images, clean.images[rows])
        assert np.array_equal(again.labels, clean.labels[rows])
