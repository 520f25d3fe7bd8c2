from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import undoor
from conftest import Linear, make_dataset
from undoor.errors import UndoorError, UndoorNotice
from undoor.networks.hooks import bytes_kept_for_gradients
from undoor.networks.recipes import PRESETS, long_enough, recipe
from undoor.networks.training import train
from undoor.networks.victims import fit_victim

QUICK = replace(PRESETS["fast"], epochs=4, batch_size=16)


def weights(model):
    return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_presets_learn_what_is_there(preset):
    data, test = make_dataset(), make_dataset(seed=1)
    steps = []
    chosen = replace(PRESETS[preset], epochs=12, batch_size=16)
    model = train(data, chosen, on_step=steps.append)
    assert not model.training
    assert (undoor.Classifier(model).decide(test.images) == test.labels).mean() > 0.9
    assert len(steps) == 12 * 3  # 60 images, whole batches of 16
    assert (steps[-1].epoch, steps[-1].step) == (12, 3)
    assert steps[-1].loss < steps[0].loss


def test_same_seed_same_network_and_global_state_untouched():
    before = torch.random.get_rng_state()
    first, second, other = (train(make_dataset(), replace(QUICK, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_interrupted_training_resumes_to_the_same_network(tmp_path, preset):
    class KilledError(Exception):
        pass

    def kill(step):
        if step.epoch == 3:
            raise KilledError

    chosen = replace(PRESETS[preset], epochs=4, batch_size=16)
    data, checkpoint = make_dataset(), tmp_path / "m.checkpoint"
    with pytest.raises(KilledError):
        train(data, chosen, checkpoint=checkpoint, on_step=kill)
    epochs = []
    resumed = train(data, chosen, checkpoint=checkpoint, on_step=lambda step: epochs.append(step.epoch))
    assert set(epochs) == {3, 4}
    assert torch.equal(weights(resumed), weights(train(data, chosen)))

    with pytest.raises(UndoorError, match="other data or settings"):
        train(make_dataset(seed=9), chosen, checkpoint=checkpoint)
    steps = []
    train(data, chosen, checkpoint=checkpoint, overwrite=True, on_step=steps.append)
    assert steps[0].epoch == 4  # the checkpoint of this very training is not overwritten,
    train(make_dataset(seed=9), chosen, checkpoint=checkpoint, overwrite=True, on_step=steps.append)
    assert steps[3].epoch == 1  # but that of another training is
    checkpoint.write_bytes(b"rubbish")
    with pytest.raises(UndoorError, match="is no checkpoint; remove it"):
        train(data, chosen, checkpoint=checkpoint)


def test_a_users_network_is_trained():
    model = Linear()
    before = weights(model).clone()
    assert train(make_dataset(), replace(QUICK, learning_rate=0.01), model) is model
    assert not torch.equal(weights(model), before)


def test_read_only_images_cause_no_warning():
    data = make_dataset()
    data.images.setflags(write=False)
    model = train(data, replace(QUICK, epochs=1))
    assert undoor.Classifier(model).decide(data.images).shape == (60,)


def test_schedules():
    fast, paper = PRESETS["fast"], PRESETS["paper"]
    assert fast.rate(0) == 0
    assert fast.rate(0.25) == pytest.approx(0.2)
    assert fast.rate(0.625) == pytest.approx(0.1)
    assert [paper.rate(epoch / 200) for epoch in (0, 79, 80, 119, 120, 160, 180, 199)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-6, 5e-7, 5e-7]
    )
    assert recipe("paper", epochs=3, seed=7) == replace(paper, epochs=3, seed=7)
    with pytest.raises(UndoorError, match=r"choose paper or paper-bf16 or .* or fast"):
        recipe("slow")
    with pytest.raises(UndoorError, match="1 or more"):
        recipe(epochs=0)
    assert recipe(learning_rate=0.03).rate(0.25) == 0.03
    with pytest.raises(UndoorError, match="learning rate is nan"):
        recipe(learning_rate=float("nan"))


@pytest.mark.parametrize("values", [2**25, 3 * 144 * 7, 1])
def test_normalisation_is_that_of_the_training_set(monkeypatch, values):
    monkeypatch.setattr(
        "undoor.storage.mapped.VALUES_AT_ONCE", values
    )  # then the sums are taken over a few images at a time
    data = make_dataset(channels=3)
    scaled = data.images / 255
    by_channel = train(data, replace(QUICK, epochs=1))[0]
    assert by_channel.mean[:, 3, 4].numpy() == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-4)
    assert by_channel.std.flatten().numpy() == pytest.approx(scaled.std((0, 2, 3)), rel=1e-3)
    by_pixel = train(data, replace(QUICK, epochs=1, normalisation="pixel"))[0]
    assert np.allclose(by_pixel.mean.numpy(), scaled.mean(0), atol=1e-5)
    assert (by_pixel.std == 1).all()


def test_training_that_diverges_is_reported():
    class Broken(Linear):
        def forward(self, images):
            return super().forward(images) * float("nan")

    with pytest.raises(UndoorError, match="loss is nan after epoch 1"):
        train(make_dataset(), QUICK, Broken())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_dataset().take(np.arange(20)), r"all 20 images are of one class \(class0\)"),
        (make_dataset().take(np.arange(41)), "class class2 has only one image"),
    ],
)
def test_sets_that_cannot_be_learned_are_reported(data, message):
    with pytest.raises(UndoorError, match=message):
        train(data, QUICK)


def test_a_step_keeps_the_inputs_of_its_layers_in_memory():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.zeros(5, 1, 12, 12)
    # The input of the first layer, and the output of the ReLU, which is the input of the last; weights do not count.
    assert bytes_kept_for_gradients(model, images) == 4 * 5 * (144 + 8)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_step_that_takes_more_than_the_memory_is_refused(monkeypatch):
    class Counted(Linear):
        def forward(self, images):
            passes.append((len(images), self.training))
            return super().forward(images)

    passes: list[tuple[int, bool]] = []
    data, once = make_dataset(), replace(QUICK, epochs=1, precision="float32")
    monkeypatch.setattr("undoor.networks.jobs.memory_limit", lambda: 4 * 16 * 144)
    with pytest.raises(UndoorError, match=r"a step on 16 images of 12 × 12 pixels takes 0.0 GiB, .* --image-size"):
        train(data, once, Counted())
    assert passes == [(1, False)]
    monkeypatch.setattr("undoor.networks.jobs.memory_limit", lambda: 4 * 16 * (144 + 8))  # exactly what a step needs
    train(data, once, Counted())
    monkeypatch.setattr("undoor.networks.jobs.memory_limit", lambda: 4 * 16 * 144 * 1000 + 1)
    passes.clear()
    train(data, once, Counted())  # so little that it is not measured
    assert passes == [(16, True)] * 3


def test_victims_are_loaded_again_if_nothing_has_changed(tmp_path):
    path, data = tmp_path / "victim.safetensors", make_dataset()
    first = fit_victim(data, QUICK, path)
    steps = []
    again = fit_victim(data, QUICK, path, on_step=steps.append)
    assert not steps
    assert torch.equal(weights(first), weights(again))
    assert not again.training
    assert [p.name for p in tmp_path.iterdir()] == ["victim.safetensors"]
    with pytest.raises(UndoorError, match="holds another network"):
        fit_victim(data, replace(QUICK, seed=1), path)
    fit_victim(data, QUICK, path, overwrite=True, on_step=steps.append)
    assert not steps
    replaced = fit_victim(data, replace(QUICK, seed=1), path, overwrite=True)
    assert not torch.equal(weights(first), weights(replaced))
    with pytest.raises(UndoorError, match=r"end in \.safetensors"):
        fit_victim(data, QUICK, tmp_path / "victim.pt")


def test_images_that_are_slow_to_train_on_are_reported(tmp_path):
    with pytest.warns(UndoorNotice, match="72×72 pixels takes long; add --image-size 32"):
        fit_victim(make_dataset(n_per_class=4, size=72), replace(QUICK, epochs=1), tmp_path / "m.safetensors")


def test_a_users_network_by_name(tmp_path):
    path = tmp_path / "victim.safetensors"
    slow = replace(QUICK, learning_rate=0.01)
    first = fit_victim(make_dataset(), slow, path, "conftest:linear_network")
    assert isinstance(first, nn.Module)
    assert torch.equal(weights(first), weights(fit_victim(make_dataset(), slow, path, "conftest:linear_network")))


@pytest.mark.parametrize(("images", "epochs"), [(50_000, 14), (5_300, 14), (1_520, 46), (90, 100), (1, 100)])
def test_small_sets_are_trained_on_for_longer(images, epochs):
    chosen = recipe("fast")
    longer = long_enough(chosen, images)
    assert longer.epochs == epochs
    assert replace(longer, epochs=chosen.epochs) == chosen
    assert long_enough(recipe("paper"), images).epochs == 200
