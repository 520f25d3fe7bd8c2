"""The steps of a training are those of a plain loop, on a CPU to the last bit; trainings end and resume alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import nn

from conftest import Linear, make_dataset
from undoor.errors import UndoorError
from undoor.networks import steps as steps_module
from undoor.networks.checkpoint import Checkpoint
from undoor.networks.jobs import Job, initial_network, new_training
from undoor.networks.recipes import PRESETS
from undoor.networks.steps import augment, draw_epoch, loss_and_tally
from undoor.networks.training import DivergedError, train, train_many

FAST = replace(PRESETS["fast"], epochs=3, batch_size=16, learning_rate=0.05)
PAPER = replace(PRESETS["paper"], epochs=3, batch_size=16)

on_gpu = pytest.mark.gpu


def weights(model):
    """Return all numbers of a network: parameters, batch statistics and counters."""
    return torch.cat([tensor.detach().cpu().flatten().float() for tensor in model.state_dict().values()])


def learned(model):
    """Return the parameters alone, because batch statistics and counters change without anything being learned."""
    return torch.cat([parameter.detach().cpu().flatten().float() for parameter in model.parameters()])


def plain_loop(data, recipe, model):
    """Train with a loop as in a textbook: shuffled batches, and nothing drawn in advance."""
    model.to(memory_format=torch.channels_last).train()
    parameters, decay = model.parameters(), recipe.weight_decay
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, recipe.learning_rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, recipe.learning_rate, momentum=0.9, weight_decay=decay, nesterov=True)
    labels, steps = torch.tensor(data.labels), len(data) // recipe.batch_size
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(data), generator=generator)
        for step in range(steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            optimizer.param_groups[0]["lr"] = recipe.rate((epoch + step / steps) / recipe.epochs)
            x = torch.from_numpy(data.images[rows.numpy()]).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x.float() / 255), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def start(recipe):
    data = make_dataset()
    return new_training(Job(data, recipe), data.images, torch.device("cpu"))


def advance(training, epochs, first=0):
    """Train the epochs from ``first`` on, and return the parameters."""
    for epoch in range(first, epochs):
        training.begin(epoch, training.draw(epoch))
        for step in range(training.steps):
            training.advance(step)
    return learned(training.model)


def distance(first, second, job):
    """Return the distance of two trained networks, as a share of the distance of the second from its initial weights.

    Kernels on a GPU may add in another order, so that two trainings hardly ever give exactly the same network.
    """
    initial = learned(initial_network(job, job.dataset.images))
    return float((learned(first) - learned(second)).norm() / (learned(second) - initial).norm())


@pytest.mark.parametrize("recipe", [FAST, replace(PAPER, augment=False)], ids=["sgd", "adam"])
def test_training_is_the_plain_loop_to_the_last_bit(recipe):
    recipe, data = replace(recipe, precision="float32"), make_dataset(channels=3)
    model = initial_network(Job(data, recipe), data.images)
    assert torch.equal(weights(train(data, recipe, device="cpu")), weights(plain_loop(data, recipe, model)))


def test_an_epoch_is_drawn_from_seed_and_number_alone():
    labels = torch.arange(1000) % 7
    plain = replace(PAPER, augment=False, batch_size=32)
    draws = draw_epoch(labels, (32, 32), plain, 4)
    assert draws.shape == (31, 5, 32)
    rows = draws[:, 0].flatten()
    assert torch.equal(rows, torch.randperm(1000, generator=torch.Generator().manual_seed(4))[: 31 * 32])
    assert torch.equal(draws[:, 1].flatten(), labels[rows])
    assert not draws[:, 2:].any()

    moved = draw_epoch(labels, (32, 32), replace(plain, augment=True), 4)
    assert torch.equal(moved[:, :2], draws[:, :2])
    assert torch.equal(moved, draw_epoch(labels, (32, 32), replace(plain, augment=True), 4))
    assert not torch.equal(moved, draw_epoch(labels, (32, 32), replace(plain, augment=True), 5))
    assert not torch.equal(moved, draw_epoch(labels, (32, 32), replace(plain, augment=True, seed=1), 4))
    assert draw_epoch(labels[:10], (32, 32), plain, 0).shape == (1, 5, 10)


def test_shifts_are_uniform_and_half_is_flipped():
    draws = draw_epoch(torch.zeros(70_000, dtype=torch.int64), (32, 12), PAPER, 0)
    down, right, flipped = draws[:, 2].flatten(), draws[:, 3].flatten(), draws[:, 4].flatten()
    for shifts, reach in ((down, 3), (right, 1)):
        shares = torch.bincount(shifts + reach) / len(shifts)
        assert shares.tolist() == pytest.approx([1 / (2 * reach + 1)] * (2 * reach + 1), abs=0.01)
    assert set(flipped.tolist()) == {0, 1}
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(torch.stack([down, right, flipped]).numpy())[np.triu_indices(3, 1)]).max() < 0.02


def test_augmentation_shifts_then_flips_and_repeats_the_border():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 10, 14), generator=generator, dtype=torch.uint8)
    rows = torch.randint(0, 5, (40,), generator=generator)
    down, right = (torch.randint(-2, 3, (40,), generator=generator) for _ in range(2))
    flipped = torch.rand(40, generator=generator) < 0.5
    moved = augment(images, rows, down, right, flipped)
    assert moved.dtype == torch.uint8
    assert moved.is_contiguous(memory_format=torch.channels_last)
    for k in range(40):
        padded = np.pad(images[rows[k]].numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
        top, left = 2 + int(down[k]), 2 + int(right[k])
        expected = padded[:, top : top + 10, left : left + 14]
        assert np.array_equal(moved[k].numpy(), expected[..., ::-1] if flipped[k] else expected)


@pytest.mark.parametrize("recipe", [FAST, PAPER], ids=["sgd", "adam"])
def test_a_training_continues_from_a_state_as_if_undisturbed(recipe):
    expected = advance(start(recipe), 3)
    first = start(recipe)
    advance(first, 2)
    state = first.state()
    advance(first, 3, first=2)  # this does not change the state, which is a copy
    second = start(recipe)
    second.load(state)
    assert torch.equal(advance(second, 3, first=2), expected)


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("recipe", [FAST, PAPER], ids=["sgd", "adam"])
def test_the_warm_up_before_a_capture_leaves_no_trace(recipe, done):
    expected = advance(start(recipe), 3)
    first, warm = start(recipe), start(recipe)
    if done:
        advance(first, done)
        warm.load(first.state())
    held = [tensor.data_ptr() for tensor in warm.model.state_dict().values()]
    warm.warm_up()
    assert [tensor.data_ptr() for tensor in warm.model.state_dict().values()] == held
    assert all(parameter.grad is None for parameter in warm.model.parameters())
    assert torch.equal(advance(warm, 3, first=done), expected)


def test_several_trainings_give_the_networks_of_single_ones():
    def without_dropout():
        network = Linear()
        network.dropout = nn.Identity()
        return network

    other = make_dataset(seed=3)
    jobs = [Job(make_dataset(), FAST), Job(other, PAPER), Job(other, replace(FAST, epochs=1), without_dropout())]
    steps = []
    many = train_many(jobs, device="cpu", on_step=lambda number, step: steps.append((number, step.epoch, step.step)))
    single = [
        train(make_dataset(), FAST, device="cpu"),
        train(other, PAPER, device="cpu"),
        train(other, replace(FAST, epochs=1), without_dropout(), device="cpu"),
    ]
    assert many[2] is jobs[2].network
    for first, second in zip(many, single, strict=True):
        assert not first.training
        assert torch.equal(weights(first), weights(second))
    epochs = [(number, epoch) for number, count in enumerate((3, 3, 1)) for epoch in range(1, count + 1)]
    assert steps == [(*epoch, step) for epoch in epochs for step in (1, 2, 3)]
    assert train_many([]) == []


def test_the_training_that_diverges_is_named_and_ends_alone(tmp_path):
    diverging = replace(FAST, learning_rate=1e30)
    jobs = [
        Job(make_dataset(), recipe, None, tmp_path / f"{k}.checkpoint")
        for k, recipe in enumerate([FAST, diverging, FAST])
    ]
    ended = []
    outcomes = train_many(jobs, device="cpu", on_end=lambda number, trained: ended.append((number, trained)))
    assert ended == list(enumerate(outcomes))
    assert isinstance(outcomes[1], DivergedError)
    assert str(outcomes[1]).startswith("training 2 of 3: the loss is nan after epoch")
    alone = train(make_dataset(), FAST, device="cpu")
    assert torch.equal(weights(outcomes[0]), weights(alone))
    assert torch.equal(weights(outcomes[2]), weights(alone))
    with pytest.raises(UndoorError, match=r"^the loss is nan after epoch .*; train with another seed or network$"):
        train(make_dataset(), diverging, device="cpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_a_budget_that_ends_leaves_every_training_resumable(tmp_path, device):
    class SpentError(Exception):
        pass

    def budget(number, step):
        if number == 1 and step.epoch == 3:
            raise SpentError

    recipes = (FAST, replace(PAPER, epochs=4), replace(FAST, seed=5))
    jobs = [Job(make_dataset(), recipe, None, tmp_path / f"{k}.checkpoint") for k, recipe in enumerate(recipes)]
    with pytest.raises(SpentError):
        train_many(jobs, device=device, on_step=budget)
    seen = set()
    resumed = train_many(jobs, device=device, on_step=lambda number, step: seen.add((number, step.epoch)))
    # On a CPU every step is reported: the first training had ended, and the third had not begun. On a GPU the last step
    # of an epoch is reported after its checkpoint, and the third training had reported nothing since its second epoch.
    expected = {"cpu": {(1, 3), (1, 4), (2, 1), (2, 2), (2, 3)}, "cuda": {(1, 4), (2, 3)}}
    assert seen == expected[device]
    undisturbed = train_many([replace(job, checkpoint=None) for job in jobs], device=device)
    for job, first, second in zip(jobs, resumed, undisturbed, strict=True):
        assert torch.equal(weights(first), weights(second)) or device == "cuda"
        assert distance(first, second, job) < 0.2


def test_a_training_that_never_learns_is_far_from_one_that_does():
    job = Job(make_dataset(), FAST)
    idle, learning = (train(job.dataset, replace(FAST, learning_rate=rate), device="cpu") for rate in (1e-12, 0.05))
    assert distance(idle, learning, job) > 0.9
    assert distance(learning, learning, job) == 0


def test_batches_are_counted_as_if_every_step_had_counted_them():
    counters = [value for name, value in train(make_dataset(), FAST).state_dict().items() if "num_batches" in name]
    assert counters
    assert all(int(counter) == 3 * 3 for counter in counters)

    class Averaging(Linear):
        """Its batch norm reads its counter, because it has no momentum and averages over all batches."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(144, momentum=None)

        def forward(self, images):
            return super().forward(self.norm(images.flatten(1)))

    class KilledError(Exception):
        pass

    def kill(step):
        counted.append(int(model.norm.num_batches_tracked))
        if step.step == 2:
            raise KilledError

    model, counted = Averaging(), []
    with pytest.raises(KilledError):
        train(make_dataset(), replace(FAST, learning_rate=0.01), model, on_step=kill)
    assert counted == [1, 2]


def test_checkpoints_of_earlier_versions_are_read():
    first, second = start(FAST), start(FAST)
    advance(first, 1)
    state = first.state()
    state["model"] |= {"1.stages.1.num_batches_tracked": torch.tensor(3)}
    second.load(state)
    assert torch.equal(learned(first.model), learned(second.model))
    state["model"] |= {"1.stages.1.unknown": torch.tensor(3)}
    with pytest.raises(ValueError, match="of another network"):
        second.load(state)


@pytest.mark.parametrize("held", [False, True], ids=["gathered", "held"])
def test_networks_of_the_same_structure_share_compiled_code(monkeypatch, held):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    def run(recipe, data):
        images = torch.tensor(data.images) if held else data.images
        advance(new_training(Job(data, recipe), images, torch.device("cpu")), 1)

    def shapes(graph):
        inputs = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
        return [tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)]

    torch._dynamo.reset()
    compiled = torch.compile(loss_and_tally, dynamic=False, backend=count)
    monkeypatch.setattr(steps_module, "compiled_loss_and_tally", lambda: compiled)
    monkeypatch.setattr("undoor.networks.jobs.COMPILE_PIXELS", 0)
    for seed in range(10):  # sets of several sizes, as after the removal of flagged images
        run(replace(PAPER, epochs=1, seed=seed), make_dataset(n_per_class=20 + seed))
    assert len(graphs) == 1
    for seed in range(2):
        run(replace(PAPER, epochs=1, batch_size=10, seed=seed), make_dataset())
    assert len(graphs) == 2
    for graph, batch in zip(graphs, (16, 10), strict=True):
        assert (5, batch) in shapes(graph)
        # The only symbolic size is the number of images in the memory of a GPU.
        symbols = [size for shape in shapes(graph) for size in shape if not isinstance(size, int)]
        assert len(symbols) == held
    torch._dynamo.reset()


def test_checkpoints_come_after_a_pause_and_a_failure_still_writes_the_newest(tmp_path, monkeypatch):
    path, clock = tmp_path / "m.checkpoint", [0.0]
    monkeypatch.setattr("undoor.networks.checkpoint.time.monotonic", lambda: clock[0])

    def written():
        return torch.load(path, weights_only=True)["epoch"] if path.exists() else None

    def fail():
        with Checkpoint(path, pause=20.0) as checkpoint:
            checkpoint.resume({}, torch.device("cpu"))
            for epoch, seconds, expected in ((1, 5, None), (2, 21, 2), (3, 30, 2), (4, 41, 4), (5, 99, 4)):
                clock[0] = seconds
                checkpoint.keep({"epoch": epoch}, last=epoch == 5)
                assert written() == expected
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert written() == 5
