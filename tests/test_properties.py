"""What must hold whatever is given: attacks, filters, mixtures, impurity, metrics and what is kept in files.

The examples are drawn by hypothesis, the same ones in every run.
"""

import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

import undoor
from undoor.attacks import OnePixel, poison, read_attack, triggered, write_attack
from undoor.attacks.pixels import Pixels
from undoor.attacks.poisoning import Attack, chosen_rows
from undoor.dataset import Dataset, row_ids
from undoor.defenses.training_set.cluster_impurity import certain_share, confident_changes, impurity
from undoor.em import Mixtures, from_labels, log_densities, posterior, step
from undoor.errors import UndoorError
from undoor.experiments.store import Store, digest
from undoor.filters import Average, Gaussian, Median, Noise, Quantise, parse_filter
from undoor.findings import (
    CLUSTER_COLUMNS,
    SAMPLE_COLUMNS,
    VIEW_COLUMNS,
    Findings,
    curve_table,
    read_findings,
    read_ids,
)
from undoor.metrics import detection
from undoor.mixture import MixtureSettings, bic, cluster, whiten
from undoor.readers.parquet import write_parquet
from undoor.readers.subset import write_subset


def always(examples):
    """Return the settings of a property: always the same examples, however long they take."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


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


# Mixtures


@st.composite
def rows_and_parts(draw):
    """Some rows around two or three centres, with a partition that may cut across them."""
    seed, t, k = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(3, t)) * draw(st.floats(0, 6))
    rows = np.concatenate([centre + generator.normal(size=(20, t)) * generator.uniform(0.2, 2) for centre in centres])
    labels = generator.permutation(np.arange(60) % k)
    return rows - rows.mean(0), labels, k


def begun(rows, labels, k, ridge=1e-3):
    """Rows, present rows, the mixture that a partition starts, and the ridge, as EM takes them."""
    x, of = torch.from_numpy(rows)[None], torch.zeros(1, dtype=torch.int64)
    ridges = torch.full((1, rows.shape[1]), ridge, dtype=torch.float64)
    return (
        x,
        torch.ones(1, len(rows), dtype=torch.bool),
        from_labels(x, torch.from_numpy(labels)[None], of, k, ridges),
        ridges,
    )


@given(rows_and_parts())
@always(25)
def test_em_climbs_and_its_densities_are_gaussian(drawn):
    rows, labels, k = drawn
    # Without a ridge no step of EM can lower the likelihood; with one, by no more than the ridge accounts for.
    x, present, mixture, ridge = begun(rows, labels, k, ridge=1e-9)
    reached = -np.inf
    for _ in range(6):
        likelihood, better = step(x, present, mixture, ridge)
        assert float(likelihood) >= reached - 1e-6 * max(1.0, abs(reached))
        reached, mixture = float(likelihood), better

    assert float(mixture.weights.sum()) == pytest.approx(1)
    logs = log_densities((x[:, None] - mixture.means[:, :, None]), mixture)[0].numpy()
    inverses = torch.linalg.inv(mixture.whitenings[0]).mT
    expected = np.stack(
        [
            np.log(weight) + multivariate_normal(mean, covariance, allow_singular=True).logpdf(rows)
            for weight, mean, covariance in zip(
                mixture.weights[0].numpy(), mixture.means[0].numpy(), (inverses @ inverses.mT).numpy(), strict=True
            )
        ]
    )
    assert logs == pytest.approx(expected, rel=1e-6, abs=1e-6)
    likelihoods, assignments = posterior(x, mixture)
    assert likelihoods[0].numpy() == pytest.approx(logsumexp(expected, axis=0), rel=1e-6, abs=1e-6)
    shares = np.exp(logs - likelihoods[0].numpy())
    assert shares.sum(0) == pytest.approx(np.ones(len(rows)))
    assert np.array_equal(assignments[0].numpy(), shares.argmax(0))


@given(rows_and_parts(), st.integers(1, 4))
@always(25)
def test_em_is_scikit_learns(drawn, steps):
    rows, labels, k = drawn
    x, present, mixture, ridge = begun(rows, labels, k)
    parts = [rows[labels == j] for j in range(k)]
    covariances = [
        np.cov(part.T, bias=True).reshape(rows.shape[1], -1) + 1e-3 * np.eye(rows.shape[1]) for part in parts
    ]
    theirs = GaussianMixture(
        k, reg_covar=1e-3, tol=0, max_iter=steps, weights_init=[len(part) / len(rows) for part in parts],
        means_init=[part.mean(0) for part in parts], precisions_init=np.linalg.inv(covariances),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(rows)
    for _ in range(steps):
        mixture = step(x, present, mixture, ridge)[1]
    assert mixture.means[0].numpy() == pytest.approx(theirs.means_, rel=1e-6, abs=1e-6)
    assert mixture.weights[0].numpy() == pytest.approx(theirs.weights_, rel=1e-6)
    ours = bic(float(posterior(x, mixture)[0].sum()), k, *rows.shape)
    assert ours == pytest.approx(theirs.bic(rows) / 2 + np.log(len(rows)) / 2, rel=1e-6)


@given(rows_and_parts(), st.randoms(use_true_random=False))
@always(25)
def test_the_order_of_rows_and_of_components_does_not_matter(drawn, random):
    rows, labels, k = drawn
    x, present, mixture, ridge = begun(rows, labels, k)
    order, turn = random.sample(range(len(rows)), len(rows)), np.array(random.sample(range(k), k))
    places, _, _, _ = begun(rows[order], labels[order], k)
    turned = Mixtures(mixture.weights[:, turn], mixture.means[:, turn], mixture.whitenings[:, turn])
    one, other = step(x, present, mixture, ridge), step(places, present, turned, ridge)
    assert float(other[0]) == pytest.approx(float(one[0]), rel=1e-9)
    assert other[1].means[0].numpy() == pytest.approx(one[1].means[0].numpy()[turn], rel=1e-6, abs=1e-8)


@given(rows_and_parts(), st.floats(0.05, 20))
@always(25)
def test_the_likelihood_of_scaled_rows_is_the_scaled_likelihood(drawn, scale):
    rows, labels, k = drawn
    n, t = rows.shape
    x, present, mixture, ridge = begun(rows, labels, k)
    scaled, _, other, wider = begun(scale * rows, labels, k, ridge=1e-3 * scale**2)
    for _ in range(3):
        plain, mixture = step(x, present, mixture, ridge)
        larger, other = step(scaled, present, other, wider)
    assert float(larger) == pytest.approx(float(plain) - n * t * np.log(scale), rel=1e-6, abs=1e-6)


@given(rows_and_parts())
@always(25)
def test_whitening_turns_and_stretches_and_keeps_the_volume(drawn):
    rows, _, _ = drawn
    whitened, added, log_scale = whiten(rows, 1e-3)
    variances = whitened.var(axis=0)
    assert variances + added == pytest.approx(np.ones(rows.shape[1]), rel=1e-6)
    covariance = np.cov(rows.T, bias=True).reshape(rows.shape[1], -1)
    assert np.linalg.slogdet(covariance + 1e-3 * np.eye(rows.shape[1]))[1] / 2 == pytest.approx(log_scale)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-3, 3).map(float)),
    st.randoms(use_true_random=False),
)
@always(15)
def test_any_class_is_clustered_and_its_order_does_not_matter(features, random):
    found = cluster(features, MixtureSettings(restarts=1, max_components=4), 0)
    distinct = len(np.unique(features, axis=0))
    assert 1 <= found.components <= min(distinct, 4)
    assert np.isfinite(found.criteria).all()
    assert set(found.assignments) <= set(range(found.components))
    for row in features:  # what is equal lies in one cluster
        assert len(set(found.assignments[(features == row).all(1)])) == 1
    order = random.sample(range(len(features)), len(features))
    again = cluster(features[order], MixtureSettings(restarts=1, max_components=4), 0)
    assert again.criteria == found.criteria
    assert np.array_equal(again.assignments, found.assignments[order])


# Impurity


@given(st.integers(0, 200), st.integers(0, 200))
@always(100)
def test_impurity_is_minus_the_logarithm_of_the_share_that_is_kept(kept, more):
    examined = kept + more
    found = impurity(kept, examined)
    assert found >= 0
    if examined == 0:
        assert found == 0
    elif kept == 0:
        assert found == pytest.approx(np.log(2 * examined))
        assert found > impurity(1, examined)
    else:
        assert found == pytest.approx(-np.log(kept / examined))
        assert (found == 0) == (more == 0)
        assert impurity(kept, examined + 1) > found


@given(st.integers(1, 300), st.data())
@always(100)
def test_the_certain_share_lies_below_the_share_and_grows_with_the_evidence(examined, data):
    changed = data.draw(st.integers(0, examined))
    share = certain_share(changed, examined)
    assert 0 <= share < 1
    assert (share == 0) == (changed == 0)
    assert share <= changed / examined
    assert share <= certain_share(2 * changed, 2 * examined)
    if changed < examined:
        assert share <= certain_share(changed + 1, examined)


@given(st.data(), st.integers(2, 4), st.integers(1, 30), st.randoms(use_true_random=False))
@always(60)
def test_confident_changes_do_not_depend_on_scale_shift_or_order(data, k, n, random):
    whole = st.integers(-20, 20).map(float)
    after = data.draw(hnp.arrays(np.float32, (n, k), elements=whole))
    before, labels = (data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1))) for _ in range(2))
    found = confident_changes(before, after, labels)
    assert not found[after.argmax(1) == labels].any()
    kept = (before == labels) & (after.argmax(1) == labels)
    assert set(after.argmax(1)[found]) <= set(labels[kept])
    assert np.array_equal(confident_changes(before, 4 * after, labels), found)  # a power of two: without rounding
    assert np.array_equal(confident_changes(before, after + 3, labels), found)
    order = random.sample(range(n), n)
    assert np.array_equal(confident_changes(before[order], after[order], labels[order]), found[order])


# Metrics


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=60))
@always(150)
def test_detection_counts_every_sample_once(drawn):
    flagged, score, labels, poisoned = (np.array(column) for column in zip(*drawn, strict=True))
    counts = detection(flagged, score.astype(float), labels, poisoned)
    assert [counts[name] for name in ("tp", "fp", "fn", "tn")] == [
        sum(one[0] == f and one[3] == p for one in drawn) for f, p in ((1, 1), (1, 0), (0, 1), (0, 0))
    ]
    both = poisoned.any() and not poisoned.all()
    assert counts["auroc"] == (pytest.approx(roc_auc_score(poisoned, score)) if both else None)
    assert counts["tpr"] == (pytest.approx(flagged[poisoned].mean()) if poisoned.any() else None)
    assert counts["fpr_all_classes"] == (pytest.approx(flagged[~poisoned].mean()) if not poisoned.all() else None)
    assert counts["precision"] == (pytest.approx(poisoned[flagged].mean()) if flagged.any() else None)
    held = [one for one in drawn if not one[3] and any(other[3] and other[2] == one[2] for other in drawn)]
    assert counts["fpr_target_class"] == (pytest.approx(np.mean([one[0] for one in held])) if held else None)
    if both:  # turned around, the areas add up to one
        turned = detection(flagged, -score.astype(float), labels, poisoned)["auroc"]
        assert counts["auroc"] + turned == pytest.approx(1)


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
    clusters = pd.DataFrame([(0, "ä", 0, 1, 3, 2, 0.5, 0.7, [0, 1], True)], columns=list(CLUSTER_COLUMNS))
    findings = Findings(
        "ci", pd.DataFrame(rows, columns=[*SAMPLE_COLUMNS, *VIEW_COLUMNS]), clusters, ("ä", "b"), 0.5, {"seed": 0}, 3,
        {"evidence": 1.5}, curves=curve_table([(0, 1, 2, 1, 3.5)]), image_filter="Average(size=2)",
    )  # fmt: skip
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
