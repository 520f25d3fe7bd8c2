"""Tests that need a GPU: captured steps, streams and memory. Run them with ``pytest -m gpu``."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import QUICKLY, make_dataset, plant
from helpers.small_suite import QUICK_CI
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.experiments.cells import Cell, Setting
from undoor.experiments.runner import Bench
from undoor.experiments.store import Store
from undoor.experiments.suites import Suite
from undoor.networks.jobs import Job, initial_network, new_training
from undoor.networks.recipes import PRESETS
from undoor.networks.training import train, train_many

pytestmark = pytest.mark.gpu

FAST = replace(PRESETS["fast"], epochs=3, batch_size=16, learning_rate=0.05)
PAPER = replace(PRESETS["paper"], epochs=3, batch_size=16)
RECIPES = [replace(FAST, augment=True), PAPER, replace(FAST, precision="float32")]


class SpentError(Exception):
    pass


def learned(model):
    return torch.cat([parameter.detach().cpu().flatten().float() for parameter in model.parameters()])


def initial(job):
    return learned(initial_network(job, job.dataset.images))


def distance(first, second, job):
    """Return the distance of two trained networks, as a share of the way of the second from its initial weights."""
    return float((learned(first) - learned(second)).norm() / (learned(second) - initial(job)).norm())


def run(job, *, captured, steps, on_host=False):
    """Return a network after some steps, the sum of its losses, and how far each step moved the parameters."""
    with torch.cuda.stream(torch.cuda.Stream()):
        images = job.dataset.images if on_host else torch.tensor(job.dataset.images, device="cuda")
        training = new_training(job, images, torch.device("cuda"))
        if captured:
            training.capture()
        losses, moved, epoch = 0.0, [], 0
        while len(moved) < steps:
            training.begin(epoch, training.draw(epoch))
            for step in range(min(training.steps, steps - len(moved))):
                before = learned(training.model)
                training.advance(step)
                torch.cuda.synchronize()
                moved.append(float((learned(training.model) - before).norm()))
            losses += training.tally()[0]
            epoch += 1
        return training.model, losses, np.array(moved)


@pytest.mark.parametrize("recipe", RECIPES, ids=["sgd-bf16", "adam", "sgd"])
@pytest.mark.parametrize("on_host", [False, True], ids=["held", "gathered"])
def test_captured_steps_are_eager_steps(recipe, on_host):
    job = Job(make_dataset(n_per_class=110), recipe)
    captured, losses, _ = run(job, captured=True, steps=20, on_host=on_host)
    eager, expected, _ = run(job, captured=False, steps=20, on_host=on_host)
    assert distance(captured, eager, job) < 0.2
    assert losses == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("preset", ["paper", "paper-bf16", "large-batch"])
def test_resnet_compiled_and_captured_is_resnet_eager(preset, monkeypatch):
    recipe = replace(PRESETS[preset], batch_size=32, learning_rate=min(PRESETS[preset].learning_rate, 0.05), epochs=20)
    job = Job(make_dataset(n_per_class=160, classes=10, size=32, channels=3), recipe, "resnet20")
    monkeypatch.setattr("undoor.networks.jobs.COMPILE_PIXELS", np.inf)
    eager, expected, _ = run(job, captured=False, steps=200)
    monkeypatch.setattr("undoor.networks.jobs.COMPILE_PIXELS", 0)
    captured, losses, _ = run(job, captured=True, steps=200)
    # Over 200 steps the rounding errors of other kernels add up. The weights are compared loosely, the losses closely.
    assert distance(captured, eager, job) < 0.7
    assert losses == pytest.approx(expected, rel=5e-2)


def test_the_learning_rate_changes_under_capture():
    # Without momentum, a step of SGD would be proportional to the learning rate, which falls to a tenth.
    recipe = replace(FAST, schedule="steps", epochs=5, learning_rate=0.05, precision="float32")
    job = Job(make_dataset(n_per_class=110), recipe)
    _, _, captured = run(job, captured=True, steps=60)
    _, _, eager = run(job, captured=False, steps=60)
    assert captured == pytest.approx(eager, rel=0.3)
    assert captured[30:40].mean() > 4 * captured[50:60].mean()  # the rate falls after 40 % of 100 steps


def test_a_captured_training_that_never_learns_is_far_from_one_that_does():
    idle = Job(make_dataset(n_per_class=110), replace(FAST, learning_rate=1e-12))
    learning = Job(idle.dataset, FAST)
    still, _, _ = run(idle, captured=True, steps=20)
    moved, _, _ = run(learning, captured=False, steps=20)
    assert distance(still, moved, learning) > 0.9


def test_a_gpu_computes_what_a_cpu_computes():
    job = Job(make_dataset(), replace(PAPER, epochs=1))
    on_gpu, on_cpu = (train(job.dataset, job.recipe, device=device) for device in ("cuda", "cpu"))
    assert distance(on_gpu, on_cpu, job) < 0.2


def test_many_streams_train_as_one():
    jobs = [Job(make_dataset(seed=k), replace(recipe, seed=k)) for k, recipe in enumerate([FAST, PAPER, FAST])]
    for job, model in zip(jobs, train_many(jobs, device="cuda"), strict=True):
        assert distance(model, train(job.dataset, job.recipe, device="cuda"), job) < 0.2


def test_eager_steps_train_too():
    job = Job(make_dataset(), FAST)
    (model,) = train_many([job], device="cuda", capture=False)
    assert distance(model, train(job.dataset, job.recipe, device="cuda"), job) < 0.2


@pytest.mark.parametrize("recipe", [FAST, PAPER], ids=["sgd", "adam"])
@pytest.mark.parametrize("way", [("cuda", "cpu"), ("cpu", "cuda")], ids=["to-cpu", "to-gpu"])
def test_a_checkpoint_resumes_on_another_device(tmp_path, recipe, way):
    def spent(number, step):
        if step.epoch == 2 and step.step == step.steps:
            raise SpentError

    job = Job(make_dataset(), recipe, None, tmp_path / "m.checkpoint")
    with pytest.raises(SpentError):
        train_many([job], device=way[0], on_step=spent)
    epochs = set()
    (resumed,) = train_many([job], device=way[1], on_step=lambda _, step: epochs.add(step.epoch))
    assert epochs == {3}
    assert distance(resumed, train(job.dataset, job.recipe, device=way[1]), job) < 0.2


def test_mixtures_are_those_of_a_cpu():
    evidence = plant().evidence
    on_gpu, on_cpu = (ClusterImpurity(device=device, **QUICKLY)(evidence) for device in ("cuda", "cpu"))
    assert on_gpu.clusters[["class", "size", "flagged"]].equals(on_cpu.clusters[["class", "size", "flagged"]])
    assert np.array_equal(on_gpu.flagged, on_cpu.flagged)


def test_a_group_of_trainings_leaves_its_memory_to_the_next():
    def taken():
        jobs = [Job(make_dataset(n_per_class=110, seed=seed), FAST) for seed in range(4)]
        train_many(jobs, device="cuda")
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    first = taken()
    torch.cuda.reset_peak_memory_stats()
    second = taken()
    assert second <= first + 2**20
    third_peak = torch.cuda.max_memory_allocated()
    taken()
    assert torch.cuda.max_memory_allocated() <= 1.1 * third_peak


def test_a_cell_of_a_bench_runs_from_its_training_to_its_findings(tmp_path):
    setting = Setting(
        "small", "bars", make_dataset(), make_dataset(seed=1), "class0", "class2", 10, FAST, test_sizes=(0.2, 0.4)
    )
    suite = Suite(setting, (Cell("multiple-source", 0.4), Cell("clean")), (QUICK_CI,), (), ())
    store = Store(tmp_path)
    assert Bench(suite, store, budget=300.0).run().finished
    assert {len(store.all(stage)) for stage in ("victims", "findings")} == {2}
    assert all("TF32" in victim["hardware"] for victim in store.all("victims").values())
