import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from conftest import plant
from undoor.defenses.training_set import SpectralSignatures
from undoor.defenses.training_set.spectral_signatures import authors_share, relative_to_cut, spectral_scores
from undoor.errors import UndoorError


def stretched(n=300, t=12, seed=0):
    generator = np.random.default_rng(seed)
    return (5 + generator.normal(size=(n, t)) * np.linspace(3, 0.5, t) @ generator.normal(size=(t, t))).astype(
        np.float32
    )


@pytest.mark.parametrize(("n", "t"), [(300, 12), (7, 40), (40, 40)])
def test_the_score_is_that_of_a_full_decomposition(n, t):
    features = stretched(n, t)
    rows = features.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(spectral_scores(features), (centred @ right[0]) ** 2, rtol=1e-8, atol=1e-8)
    assert np.allclose(spectral_scores(features), PCA(1, svd_solver="full").fit_transform(rows)[:, 0] ** 2, atol=1e-8)


def test_without_a_direction_all_scores_are_zero():
    assert spectral_scores(np.full((30, 4), 3.7, np.float32)).tolist() == [0] * 30
    assert spectral_scores(stretched(1)).tolist() == [0]


@pytest.mark.parametrize("share", [0.5, 0.15, 0.29, 1.0])
def test_the_top_share_of_each_class_is_above_one(share):
    scores = np.random.default_rng(0).exponential(size=100)
    above = relative_to_cut(scores, share) > 1
    assert above.sum() == round(100 * share)
    assert scores[above].min() > scores[~above].max(initial=0)


def test_ties_stay_together_and_a_cut_at_zero_is_a_cut():
    assert relative_to_cut(np.array([1.0, 2, 2, 2, 3]), 0.5).tolist() == [0.5, 1, 1, 1, 1.5]
    nearly_tied = relative_to_cut(np.array([1.0, 2, 2 * (1 + 1e-15), 3]), 0.5)
    assert (nearly_tied > 1).tolist() == [False, False, False, True]
    outliers = relative_to_cut(np.array([0.0, 0, 0, 0, 7, 5]), 0.5)
    assert (outliers > 1).tolist() == [False] * 4 + [True] * 2
    assert np.isfinite(outliers).all()
    assert relative_to_cut(np.zeros(5), 0.5).tolist() == [0] * 5


def test_planted_poisons_are_what_stands_out():
    planted = plant(clean=300, poison=60)
    findings = SpectralSignatures(authors_share(60 / 360), classes=("class1",))(planted.evidence)
    counts = findings.against(planted.poisoned).truth
    assert counts["tpr"] == 1
    assert counts["tp"] + counts["fp"] == 90
    assert counts["auroc"] > 0.99
    assert findings.classes_flagged == ("class1",)
    others = planted.evidence.labels != 1
    assert (findings.samples["score"][others] == 0).all()


def test_the_same_share_of_every_class_is_flagged():
    planted = plant()
    findings = SpectralSignatures(0.15)(planted.evidence)
    shares = findings.samples.groupby("label")["flagged"].mean()
    assert np.allclose(shares, 0.15, atol=0.01)
    assert findings.provenance.settings == {"share": 0.15, "classes": None}
    named = SpectralSignatures(0.15, ("class1",))(planted.evidence).samples
    treated = planted.evidence.labels == 1
    pd.testing.assert_frame_equal(named[treated], findings.samples[treated])


def test_settings_out_of_range_are_refused():
    assert authors_share(0.1) == pytest.approx(0.15)
    assert authors_share(0.9) == 1
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(UndoorError, match="above 0, at most 1"):
            SpectralSignatures(share)
    with pytest.raises(UndoorError, match="no class is called 'bird'; there are class0, class1"):
        SpectralSignatures(classes=("bird",))(plant().evidence)
