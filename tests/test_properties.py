"""Properties of attacks, of filters and of files, which hold for whatever inputs hypothesis draws.

It draws the same inputs in every run.
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
from undoor.attacks import Attack, OnePixel, Pixels, chosen_rows, poison, read_attack, triggered, write_attack
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
    """Draw up to 24 small images, grey or RGB, of two to four classes, each with at least one image."""
    classes, channels = draw(st.integers(2, 4)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    rest = draw(st.lists(st.integers(0, classes - 1), max_size=20))
    labels = np.array(draw(st.permutations([*range(classes), *rest])), dtype=np.int64)
    images = draw(hnp.arrays(np.uint8, (len(labels), channels, height, width)))
    return Dataset(images, labels, tuple("abcd"[:classes]), row_ids(len(labels)))


@st.composite
def attacks(draw, data):
    """Draw an attack that is possible on the data, with a trigger of one pixel or of several."""
    _, channels, height, width = data.images.shape
    target, *sources = draw(st.permutations(data.class_names))
    sources = sources[: draw(st.integers(1, len(sources)))]
    position = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1), st.integers(0, channels - 1))
    if draw(st.booleans()):
        trigger = OnePixel(*draw(position)[:2], draw(st.floats(0, 1)))
    else:
        positions = draw(st.lists(position, min_size=1, max_size=3, unique=True))
        trigger = Pixels(tuple((*p, draw(st.floats(-1, 1))) for p in positions))
    fewest = min(int((data.labels == data.class_names.index(name)).sum()) for name in sources)
    count = draw(st.integers(1, fewest * len(sources)))
    return Attack(trigger, tuple(sources), target, count, draw(st.booleans()), draw(st.integers(0, 9)))


@given(st.data())
@always(80)
def test_a_poisoned_set_has_the_changes_of_the_attack_and_no_others(data):
    clean = data.draw(datasets())
    attack = data.draw(attacks(clean))
    images, labels = clean.images.copy(), clean.labels.copy()
    rows = chosen_rows(clean, attack)
    changed = poison(clean, attack)
    poisoned, target = changed.truth.poisoned, clean.class_names.index(attack.target)

    assert poisoned.sum() == attack.count == len(set(rows.tolist()))
    assert len(changed) == len(clean) + attack.count * attack.keep_originals
    assert (changed.labels[poisoned] == target).all()
    assert set(changed.truth.original_labels[poisoned]) <= {clean.class_names.index(name) for name in attack.sources}
    assert np.array_equal(changed.labels[~poisoned], changed.truth.original_labels[~poisoned])
    kept = np.arange(len(clean)) if attack.keep_originals else np.setdiff1d(np.arange(len(clean)), rows)
    assert np.array_equal(changed.images[~poisoned], clean.images[kept])
    assert np.array_equal(changed.labels[~poisoned], clean.labels[kept])

    # Only the pixels of the trigger change, by its changes up to rounding and clipping.
    before, after = clean.images[rows].astype(float), changed.images[poisoned].astype(float)
    expected = np.zeros(before.shape[1:])
    if isinstance(attack.trigger, OnePixel):
        expected[:, attack.trigger.row, attack.trigger.column] = attack.trigger.size
    else:
        for row, column, channel, change in attack.trigger.changes:
            expected[channel, row, column] = change
    assert np.abs(after - np.clip(before + 255 * expected, 0, 255)).max() <= 0.5 + 1e-9
    assert np.array_equal(after[:, expected == 0], before[:, expected == 0])

    again = poison(clean, attack)
    assert changed.fingerprint() == again.fingerprint()
    assert np.array_equal(changed.truth.poisoned, again.truth.poisoned)
    assert np.array_equal(clean.images, images)
    assert np.array_equal(clean.labels, labels)
    shown = triggered(clean, attack)
    assert set(shown.labels) <= {clean.class_names.index(name) for name in attack.sources}
    assert np.array_equal(shown.images, attack.trigger(clean.take(np.isin(clean.ids, shown.ids)).images))


@given(st.data())
@always(40)
def test_an_attack_is_read_as_it_was_written(data):
    attack = data.draw(attacks(data.draw(datasets())))
    with new_folder() as folder:
        write_attack(attack, folder / "attack.json")
        assert read_attack(folder / "attack.json") == attack


@given(st.data(), st.floats(0, 1))
@always(30)
def test_a_resized_trigger_has_the_new_size_and_the_same_proportions(data, size):
    clean = data.draw(datasets())
    trigger = data.draw(attacks(clean)).trigger
    if isinstance(trigger, OnePixel):
        assert trigger.resized(size).size == size
        return
    changes = np.array([change for *_, change in trigger.changes])
    if not np.abs(changes).max() > 0:
        with pytest.raises(UndoorError, match="cannot be enlarged"):
            trigger.resized(size)
        return
    resized = np.array([change for *_, change in trigger.resized(size).changes])
    assert np.abs(resized).max() == pytest.approx(size)
    assert resized == pytest.approx(changes * (size / np.abs(changes).max()))


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
def test_filters_keep_shape_and_range_and_treat_each_image_alone(h, images):
    before = images.clone()
    filtered = h(images)
    assert filtered.shape == images.shape
    assert filtered.dtype == images.dtype
    assert float(filtered.min()) >= -1e-6
    assert float(filtered.max()) <= 1 + 1e-6
    assert torch.equal(images, before)
    alone = torch.cat([h(image[None]) for image in images])
    assert torch.allclose(alone, filtered, atol=1e-6)
    assert torch.allclose(h(images.flip(0)), filtered.flip(0), atol=1e-6)


@given(filters.filter(lambda h: not isinstance(h, Noise) and getattr(h, "edge", "") != "zero"), pictures)
@always(50)
def test_filters_keep_constants_and_treat_all_channels_alike(h, images):
    level = images.flatten()[0]
    constant = torch.full_like(images, float(level))
    tolerance = 0.5 / (h.levels - 1) if isinstance(h, Quantise) else 0.0
    assert (h(constant) - constant).abs().max() <= tolerance + 1e-6
    assert torch.allclose(h(images.flip(1)), h(images).flip(1), atol=1e-6)


@given(st.text(alphabet="avergmdinoisqutz:0123456789.-+e ", max_size=20))
@always(150)
def test_a_text_is_a_filter_or_an_error(text):
    try:
        h = parse_filter(text)
    except UndoorError:
        return
    assert h(torch.rand(1, 1, 3, 3)).shape == (1, 1, 3, 3)


# Files


@contextmanager
def new_folder():
    """Make a new folder for each example; a fixture of pytest would be the same for all."""
    with TemporaryDirectory() as name:
        yield Path(name)


def encodable(value):
    """Return whether a value can be written as UTF-8, which has no lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(encodable)


results = st.dictionaries(st.text(max_size=5).filter(encodable), plain_values, max_size=4)


@given(results, st.randoms(use_true_random=False))
@always(60)
def test_a_result_is_read_as_it_was_written_and_named_by_its_content(result, random):
    with new_folder() as folder:
        store = Store(folder)
        assert store.write("findings", "a", result) == result
        assert store.read("findings", "a") == result
        names = list(result)
        random.shuffle(names)
        shuffled = {name: result[name] for name in names}
        assert digest(shuffled) == digest(result)
        assert store.write("findings", "b", shuffled) == result
        assert store.path("findings", "a").read_bytes() == store.path("findings", "b").read_bytes()
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
    label = labels[0]  # so that the cluster is of a class with samples
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
    with new_folder() as folder:
        findings.write(folder, "<p>")
        again = read_findings(folder)
        assert read_ids(folder) == (ids, [i for i, f in zip(ids, flagged, strict=True) if not f])
        for name, is_flagged in (("keep.txt", False), ("drop.txt", True)):
            lines = (folder / name).read_text(encoding="utf-8").split("\n")[:-1]
            assert lines == [i for i, f in zip(ids, flagged, strict=True) if f == is_flagged]
    for table in ("samples", "clusters", "curves"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(findings, table), check_dtype=False)
    assert again.summary() == findings.summary()
    assert (again.verdict, again.classes_flagged) == (findings.verdict, findings.classes_flagged)


@given(st.data())
@always(20)
def test_data_sets_and_subsets_are_read_as_they_were_written(data):
    clean = data.draw(datasets())
    with new_folder() as folder:
        poisoned = poison(clean, data.draw(attacks(clean)))
        write_parquet(poisoned, folder / "poisoned.parquet")
        write_parquet(clean, folder / "plain.parquet")
        names = np.array(clean.class_names)
        np.savez(folder / "a.npz", images=clean.images, labels=clean.labels, class_names=names, ids=clean.ids)
        truth = undoor.read(folder / "poisoned.parquet").truth
        assert np.array_equal(truth.poisoned, poisoned.truth.poisoned)
        for read in (undoor.read(folder / "plain.parquet"), undoor.read(folder / "a.npz")):
            assert read.fingerprint() == clean.fingerprint()
            assert np.array_equal(read.ids, clean.ids)
        # A subset keeps the order and the bytes of the samples.
        kept = sorted(data.draw(st.sets(st.sampled_from(clean.ids.tolist()), min_size=1)), key=int)
        write_subset(str(folder / "plain.parquet"), clean.ids.tolist(), kept, folder / "out")
        again = undoor.read(folder / "out")
        rows = [int(name) for name in kept]
        assert np.array_equal(again.images, clean.images[rows])
        assert np.array_equal(again.labels, clean.labels[rows])
