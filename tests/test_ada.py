import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import betabinom, multivariate_normal, rankdata
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from conftest import make_dataset
from helpers.command_line import run  # noqa: F401 - a fixture
from helpers.image_folders import write_folder
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.data.readers.images import decode_files
from undoor.defenses.test_time import Ada, Guard, classifier_layer, max_softmax
from undoor.defenses.test_time.ada import conformal_quantile
from undoor.defenses.test_time.guard import density_statistic, kl_statistic, layer_outputs
from undoor.defenses.test_time.null import Null, fit_null
from undoor.errors import UndoorError
from undoor.findings.metrics import accuracy
from undoor.mixtures.em import Mixtures
from undoor.mixtures.sweep import MixtureSettings, fit_mixtures
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier
from undoor.networks.layers import deep_layers, pooled, watched_inputs
from undoor.networks.recipes import PRESETS
from undoor.networks.victims import fit_victim
from undoor.safe.images import encode_png

T, K = 6, 3
CENTRES = np.array([[150, 80, 80], [80, 150, 80], [80, 80, 150]])


class Nearest(torch.nn.Module):
    """Decides for the largest of the first three pixels; all six pixels are the features, the input of ``decide``."""

    def __init__(self) -> None:
        super().__init__()
        self.look = torch.nn.Linear(T, T)
        self.decide = torch.nn.Linear(T, K)
        self.idle = torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.look.weight.copy_(torch.eye(T))
            self.decide.weight.copy_(20 * torch.eye(K, T))
            for parameter in (self.look.bias, self.decide.bias, *self.idle.parameters()):
                parameter.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decide(self.look(images.flatten(1)).relu())


def drawn(n: int, seed: int, shift: float = 0.0) -> Dataset:
    """Return images of six pixels: three show the class, three do not, and the last of these is shifted."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % K
    pixels = np.full((n, T), 100.0)
    pixels[:, :K] = CENTRES[labels]
    pixels[:, -1] += shift
    pixels += generator.normal(scale=8, size=pixels.shape)
    images = pixels.round().clip(0, 255).astype(np.uint8).reshape(n, 1, 1, T)
    return Dataset(images, labels, ("a", "b", "c"), row_ids(n))


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(Nearest(), device="cpu")


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# The statistics


def test_the_divergence_is_as_computed_by_hand():
    log_null = np.log([[0.5, 0.45, 0.05], [0.2, 0.3, 0.5]])
    logits = np.log([[0.8, 0.1, 0.1], [0.25, 0.5, 0.25]])
    first = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)  # over classes 1 and 2: (0.9, 0.1) against (0.5, 0.5)
    second = 2 / 7 * np.log(2 / 7 / 0.5) + 5 / 7 * np.log(5 / 7 / 0.5)  # 0 and 2: (2, 5)/7 against (0.5, 0.5)
    np.testing.assert_allclose(kl_statistic(log_null, logits, np.array([0, 1])), [first, second])


def test_the_divergence_is_that_of_scipy():
    generator = np.random.default_rng(0)
    log_null, logits = generator.normal(scale=3, size=(2, 50, 7))
    decisions = logits.argmax(1)
    for row, c in enumerate(decisions):
        p, q = (softmax(np.delete(values[row], c)) for values in (log_null, logits))
        assert kl_statistic(log_null, logits, decisions)[row] == pytest.approx(rel_entr(p, q).sum())


def test_the_divergence_of_gaussian_nulls_in_closed_form():
    """With unit Gaussians at ±a and a uniform network, P is logistic in z: log-odds 2az."""
    eye = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    means = torch.tensor([0.0, 1.5, -1.5], dtype=torch.float64).view(3, 1, 1)
    null = Null(np.zeros(1), np.eye(1), Mixtures(torch.ones(3, 1, dtype=torch.float64), means, eye))
    z = np.linspace(-2, 2, 9)
    p = 1 / (1 + np.exp(-3 * z))
    expected = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    logs = null.log_densities(z[:, None].astype(np.float32))
    np.testing.assert_allclose(kl_statistic(logs, np.zeros((9, 3)), np.zeros(9, np.int64)), expected, atol=1e-12)
    np.testing.assert_allclose(density_statistic(logs, np.ones(9, np.int64)), -multivariate_normal(1.5).logpdf(z))


def test_the_divergence_stays_finite_where_densities_underflow():
    logs = np.array([[0.0, -1e6, -2e6], [0.0, -1e6, -1e6]])
    logits = np.array([[900.0, -900.0, 0.0], [900.0, 0.0, 0.0]])
    np.testing.assert_allclose(kl_statistic(logs, logits, np.zeros(2, np.int64)), [900.0, 0.0], atol=1e-9)


# The nulls


def test_the_null_has_the_densities_of_scipy():
    generator = np.random.default_rng(1)
    labels = np.arange(400) % 2
    spread = generator.normal(size=(3, 3))
    features = (generator.normal(size=(400, 3)) @ spread + 4 * labels[:, None]).astype(np.float32)
    null = fit_null(features, labels, 2, MixtureSettings(max_components=1, dimensions=None), 0)
    coordinates = (features - null.mean) @ null.axes
    within = coordinates - np.stack([coordinates[labels == c].mean(0) for c in (0, 1)])[labels]
    np.testing.assert_allclose(np.cov(within.T), np.eye(3), atol=1e-6)
    for c in (0, 1):
        members = coordinates[labels == c]
        gaussian = multivariate_normal(members.mean(0), np.cov(members.T, bias=True) + 1e-3 * np.eye(3))
        np.testing.assert_allclose(null.log_densities(features)[:, c], gaussian.logpdf(coordinates), rtol=1e-6)


def test_mixtures_of_different_orders_are_those_of_scikit_learn():
    generator = np.random.default_rng(2)
    single = generator.normal(size=(300, 2))
    double = np.concatenate([generator.normal(size=(200, 2)), generator.normal(size=(100, 2)) + 9])
    mixtures = fit_mixtures([single, double], MixtureSettings(dimensions=None), 0)
    null = Null(np.zeros(2), np.eye(2), mixtures)
    assert null.components == (1, 2)
    for c, rows in enumerate((single, double)):
        oracle = GaussianMixture(c + 1, reg_covar=1e-3, n_init=3, random_state=0).fit(rows)
        logs = null.log_densities(rows.astype(np.float32))[:, c]
        np.testing.assert_allclose(logs, oracle.score_samples(rows.astype(np.float32)), atol=1e-3)


def test_a_constant_network_or_layer_is_refused(classifier):
    with torch.no_grad():
        classifier.model.look.weight.zero_()
        classifier.model.decide.weight.zero_()
        classifier.model.decide.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    clean = drawn(200, 0)
    with pytest.raises(UndoorError, match="class b the model decides none as b"):
        Ada().fit(classifier, clean)
    with pytest.raises(UndoorError, match="does not vary"):
        fit_null(np.ones((9, 4), np.float32), np.arange(9) % 3, 3, MixtureSettings(dimensions=None), 0)


# The inputs of layers


def test_inputs_are_pooled_over_places_and_tokens():
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    assert pooled(torch.nn.Conv2d(2, 2, 1), maps).tolist() == [[11, 23]]
    assert pooled(torch.nn.Linear(4, 2), maps).tolist() == [[20, 21, 22, 23]]
    assert pooled(torch.nn.Linear(4, 2), maps[0, 0]).shape == (3, 4)


def test_inputs_of_named_layers_are_recorded_and_hooks_removed():
    model = build_network("small-cnn", (1, 12, 12), 3).eval()
    images = torch.rand(5, 1, 12, 12)
    with watched_inputs(model, ("1.stages.4", "1.classify")) as seen:
        model(images)
    assert hooks(model) == 0
    maps = model[1].stages[:4](model[0](images))
    torch.testing.assert_close(seen["1.stages.4"], maps.amax((2, 3)))
    torch.testing.assert_close(model[1].classify(seen["1.classify"]), model(images))
    assert deep_layers(model, lambda: model(images), 2) == ("1.stages.8", "1.classify")
    assert deep_layers(model, lambda: model(images), 9) == ("1.stages.4", "1.stages.8", "1.classify")
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), watched_inputs(model, ("1.classify",)):
        model(torch.rand(1, 3, 12, 12))
    assert hooks(model) == 0


def test_without_a_deep_layer_the_user_must_name_one():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(T, K, bias=False))
    torch.nn.init.eye_(model[1].weight)
    with pytest.raises(UndoorError, match="name the layers to watch"):
        Ada().fit(Classifier(model, device="cpu"), drawn(90, 0))
    assert Ada(layers=("1",)).fit(Classifier(model, device="cpu"), drawn(300, 0)).layers == ("1",)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("depth",), "no layer 'depth'.*'look', 'decide'"), (("idle",), "'idle' does not run")],
)
def test_a_layer_that_does_not_exist_or_run_is_refused(classifier, layers, message):
    with pytest.raises(UndoorError, match=message):
        Ada(layers=layers).fit(classifier, drawn(200, 0))
    assert hooks(classifier.model) == 0


# The guard


def test_another_draw_exceeds_the_quantile_with_the_asked_probability():
    values = np.random.default_rng(0).permutation(39.0 + np.arange(39))
    quantile = conformal_quantile(values, 0.05)
    # Another exchangeable draw has each of the 40 ranks with the same probability, and two lie above the 38th value.
    assert rankdata(values)[values == quantile] == [38]
    assert conformal_quantile(np.arange(19.0), 0.05) == 18
    with pytest.raises(UndoorError, match=r"18 clean images are held out.*needs 19"):
        conformal_quantile(np.arange(18.0), 0.05)


@pytest.mark.parametrize("statistic", ["density", "kl"])
def test_as_many_clean_queries_are_rejected_as_asked(classifier, statistic):
    layers = ("look", "decide")
    guard = Ada(layers, statistic, false_positive_rate=0.1).fit(classifier, drawn(3000, 0))
    fresh = drawn(6000, 1)
    held = guard.provenance.settings["held_out_images"]
    rank = int(np.ceil((held + 1) * 0.9))
    low, high = betabinom(len(fresh), held + 1 - rank, rank).interval(0.999)
    assert low <= guard.check(fresh.images).rejected.sum() <= high


def test_a_planted_shift_is_found(classifier):
    guard = Ada(false_positive_rate=0.02).fit(classifier, drawn(1500, 0))
    assert guard.layers == ("decide",)
    clean, shifted = drawn(600, 1), drawn(600, 2, shift=70)
    assert accuracy(classifier.decide(shifted.images), shifted.labels) > 0.99  # the decisions do not show it
    scores = [guard.statistic(queries.images) for queries in (clean, shifted)]
    assert roc_auc_score(np.repeat([0, 1], 600), np.concatenate(scores)) > 0.99
    checked = guard.check(shifted.images)
    assert checked.rejected.mean() > 0.95
    np.testing.assert_array_equal(checked.rejected, checked.statistic > guard.threshold)
    doubt = [max_softmax(classifier, queries.images) for queries in (clean, shifted)]
    assert roc_auc_score(np.repeat([0, 1], 600), np.concatenate(doubt)) < 0.6


def test_the_divergence_finds_a_decision_that_the_features_contradict(classifier):
    """The network decides b for images of class a, and c is the next likely class; the features are those of a."""
    guard = Ada(statistic="kl").fit(classifier, drawn(1500, 0))
    with torch.no_grad():
        classifier.model.decide.weight.copy_(classifier.model.decide.weight[[1, 2, 0]])
    fooled = drawn(300, 1)
    fooled = fooled.take(fooled.labels == 0)
    logits = layer_outputs(classifier, fooled.images, ())[1]
    assert (logits.argmax(1) == 2).all()
    with torch.no_grad():
        classifier.model.decide.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    assert guard.check(fooled.images).rejected.mean() > 0.95


def test_maximum_softmax_follows_its_definition(classifier):
    images = drawn(30, 0).images
    expected = 1 - softmax(layer_outputs(classifier, images, ())[1].astype(float), axis=1).max(1)
    np.testing.assert_allclose(max_softmax(classifier, images), expected, rtol=1e-6, atol=1e-15)


def test_the_batch_size_does_not_matter_and_the_seed_does(classifier):
    clean, queries = drawn(600, 0), drawn(100, 1)
    layers = ("look", "decide")
    guards = [Ada(layers, seed=seed).fit(classifier, clean, batch_size=size) for seed, size in ((0, 7), (0, 7), (1, 7))]
    scores = [guard.statistic(queries.images) for guard in guards]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])
    np.testing.assert_allclose(guards[0].statistic(queries.images, batch_size=9), scores[0], rtol=1e-5, atol=1e-5)
    assert guards[0].threshold == guards[1].threshold


def test_ids_and_truth_do_not_matter(classifier):
    clean = drawn(300, 0)
    truth = Truth(clean.labels == 0, clean.labels)
    other = replace(clean, truth=truth, ids=clean.ids[::-1].copy())
    assert Ada().fit(classifier, clean).threshold == Ada().fit(classifier, other).threshold


def test_a_guard_is_read_bit_for_bit_as_it_was_written(classifier, tmp_path):
    guard = Ada(("look", "decide"), "kl", seed=3).fit(classifier, drawn(600, 0))
    guard = replace(guard, provenance=replace(guard.provenance, versions={"torch": "2.6"}))  # as if fitted long ago
    path = tmp_path / "guard.safetensors"
    guard.write(path)
    again = Guard.read(path, Classifier(Nearest(), device="cpu"))
    again.write(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert again.summary() == guard.summary() == json.loads(json.dumps(guard.summary()))
    images = drawn(50, 1).images
    np.testing.assert_array_equal(again.statistic(images), guard.statistic(images))
    assert classifier_layer(path) is None
    with pytest.raises(UndoorError, match="exists already"):
        guard.write(path)
    guard.write(path, overwrite=True)


def test_a_guard_of_another_network_is_refused(classifier, tmp_path):
    path = tmp_path / "guard.safetensors"
    Ada().fit(classifier, drawn(300, 0)).write(path)
    other = Nearest()
    with torch.no_grad():
        other.decide.bias[0] = 1e-6
    with pytest.raises(UndoorError, match="guards another network"):
        Guard.read(path, Classifier(other, device="cpu"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UndoorError, match="no whole guard"):
        Guard.read(path, classifier)
    with pytest.raises(UndoorError, match="is no file"):
        Guard.read(tmp_path / "none.safetensors", classifier)


def test_data_that_cannot_be_fitted_are_refused(classifier):
    clean = drawn(300, 0)
    for dataset, message in (
        (clean.take(clean.labels != 1), "class b has 0 clean images"),
        (replace(clean.take(clean.labels == 0), class_names=("a",)), "of 1 class"),
        (replace(clean, class_names=("a", "b", "c", "d"), labels=np.arange(300) % 4), "tells 3 classes apart.*has 4"),
        (clean.take(np.arange(30)), "held out, a false-positive rate of 0.05 needs 19"),
    ):
        with pytest.raises(UndoorError, match=message):
            Ada().fit(classifier, dataset)
    two = replace(clean.take(clean.labels < 2), class_names=("a", "b"))
    with pytest.raises(UndoorError, match="three"):
        Ada(statistic="kl").fit(classifier, two)
    guard = Ada().fit(classifier, clean)
    with pytest.raises(UndoorError, match="the guard was fitted on"):
        guard.check(np.zeros((3, 1, 2, T), np.uint8))
    with torch.no_grad():
        classifier.model.look.weight[0, 0] = torch.nan
    with pytest.raises(UndoorError, match="finite"):
        guard.check(clean.images)
    assert hooks(classifier.model) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"statistic": "entropy"},
        {"false_positive_rate": 0.0},
        {"held_out": 1.0},
        {"layers": ()},
        {"layers": ("a", "a")},
        {"mixture": MixtureSettings()},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UndoorError):
        Ada(**settings)


# Images and the command line


def test_image_files_are_brought_to_the_shape_of_the_guard(tmp_path):
    small, large = np.full((1, 4, 4), 7, np.uint8), np.full((3, 9, 5), 200, np.uint8)
    paths = [tmp_path / "small.png", tmp_path / "large.png"]
    for path, image in zip(paths, (small, large), strict=True):
        path.write_bytes(encode_png(image))
    images, ids = decode_files(paths, (3, 4, 4))
    assert images.shape == (2, 3, 4, 4)
    assert set(np.unique(images)) == {7, 200}
    assert ids.tolist() == [str(path) for path in paths]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    root = tmp_path_factory.mktemp("guarded")
    clean = make_dataset(n_per_class=60, seed=1)
    write_folder(clean, root / "clean")
    fit_victim(
        make_dataset(n_per_class=40), replace(PRESETS["fast"], epochs=8, batch_size=16), root / "net.safetensors"
    )
    odd = clean.images[:6].copy()
    odd[:, :, ::2, ::2] = 255 - odd[:, :, ::2, ::2]
    for row, image in enumerate(odd):
        (root / f"odd{row}.png").write_bytes(encode_png(image))
    return root


def test_fit_and_check_from_the_command_line(guarded, run, monkeypatch):  # noqa: F811
    net, kept = guarded / "net.safetensors", guarded / "guard.safetensors"
    fit = ("guard", "fit", net, "--data", guarded / "clean", "--out", kept)
    code, out, _ = run(*fit)
    assert code == 0
    assert "1.classify" in out
    assert run(*fit)[0] == 2
    code, out, _ = run("guard", "check", net, "--guard", kept, "--data", guarded / "clean", "--exit-zero")
    assert code == 0
    assert "of 180 queries rejected" in out

    table = guarded / "found.parquet"
    odd = [str(guarded / f"odd{row}.png") for row in range(6)]
    monkeypatch.setattr("sys.stdin", StringIO("\n".join(odd) + "\n"))
    code, _, _ = run("guard", "check", net, "--guard", kept, "--out", table)
    assert code == 1
    found = pd.read_parquet(table)
    assert list(found.columns) == ["id", "decision", "statistic", "rejected"]
    assert found["id"].tolist() == odd
    assert found["rejected"].all()


def test_errors_of_the_command_line_are_one_line(guarded, run, monkeypatch, tmp_path):  # noqa: F811
    net, kept = guarded / "net.safetensors", tmp_path / "guard.safetensors"
    code, _, err = run("guard", "fit", net, "--data", guarded / "clean", "--out", kept, "--layer", "nowhere")
    assert code == 2
    assert err.count("\n") == 1 + err.count("…\n")
    assert "nowhere" in err
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert run("guard", "fit", net, "--data", guarded / "clean", "--out", kept, "--layer", "1.classify")[0] == 0
    check = ("guard", "check", net, "--guard", kept)
    for lines, options, expected in (
        (f"{broken}\n", (), "cannot be decoded"),
        ("", (), "names no image"),
        (f"{broken}\n{guarded / 'odd0.png'}\n", ("--skip-broken", "--exit-zero"), "skipped: 1 of 2 images"),
        (f"{tmp_path / 'gone.png'}\n", (), "cannot be decoded"),
    ):
        monkeypatch.setattr("sys.stdin", StringIO(lines))
        code, _, err = run(*check, *options)
        assert (code == 0) == bool(options)
        assert expected in err


def test_a_network_without_a_linear_layer_is_guarded_alike():
    look, decide = torch.nn.Conv2d(1, T, (1, T), bias=False), torch.nn.Conv2d(T, K, 1, bias=False)
    with torch.no_grad():
        look.weight.copy_(torch.eye(T).view(T, 1, 1, T))
        decide.weight.copy_(20 * torch.eye(K, T).view(K, T, 1, 1))
    model = torch.nn.Sequential(look, torch.nn.ReLU(), decide, torch.nn.Flatten())
    guard = Ada().fit(Classifier(model, layer="2", device="cpu"), drawn(300, 0))
    dense = Ada().fit(Classifier(Nearest(), device="cpu"), drawn(300, 0))
    assert guard.layers == ("2",)
    np.testing.assert_allclose(guard.statistic(drawn(50, 1).images), dense.statistic(drawn(50, 1).images), rtol=1e-4)
