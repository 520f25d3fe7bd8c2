import os
import secrets
import signal
import sys
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from conftest import QUICKLY, plant
from helpers.small_suite import QUICK_CI, make_suite, results_without_times
from undoor.defenses.training_set.cluster_impurity import ClusterImpurity
from undoor.defenses.training_set.controls import RandomRemoval
from undoor.engine import Engine, as_finished, map_items, one_thread
from undoor.errors import UndoorError
from undoor.evidence.collect import collect
from undoor.experiments.before_training import on_training_set
from undoor.experiments.runner import Bench
from undoor.experiments.store import Store
from undoor.filters import Average
from undoor.mixtures.memory import remembered_clusterings
from undoor.networks.classifier import Classifier

# When Ray starts its processes on a busy machine it may give one up and start another.
pytestmark = pytest.mark.filterwarnings(r"ignore:[\s\S]*Popen.__del__:pytest.PytestUnraisableExceptionWarning")

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
NOTICES_A_DEATH = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def head():
    """A Ray cluster on this machine, with one node of one core; its address is in RAY_ADDRESS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'undoor[ray]'")
        from ray.cluster_utils import Cluster

        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        node = {**NODE, "include_dashboard": False, "_system_config": NOTICES_A_DEATH}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def cluster(head):
    """The cluster, with a second node of one core."""
    if not head.worker_nodes:
        head.add_node(**NODE)
    return head


@pytest.fixture
def doomed(cluster):
    """The name of the second node, and a function that kills the node."""
    (node,) = cluster.worker_nodes
    return node.node_id, partial(cluster.remove_node, node, allow_graceful=False)


@pytest.fixture(params=["local", "processes", "ray"])
def engine(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return Engine(request.param, workers=2)


def inverse(item, matrix):
    return np.linalg.inv(matrix @ matrix.T + item * np.eye(len(matrix)))


def test_every_engine_gives_the_same_bits_in_order(engine):
    work = partial(inverse, matrix=np.random.default_rng(0).normal(size=(150, 150)))
    with one_thread():
        expected = [work(item) for item in range(1, 8)]
    np.testing.assert_array_equal(map_items(work, range(1, 8), engine), expected)


def slowly(item):
    time.sleep(0.1)
    return str(item)


def test_results_come_as_they_are_finished_and_items_are_taken_late(engine):
    taken = []
    items = (taken.append(item) or item for item in range(20))
    finished = as_finished(slowly, items, engine)
    results = [next(finished)]
    assert len(taken) < 20
    results += finished
    assert sorted(results) == [(item, str(item)) for item in range(20)]


def test_after_stopping_early_other_items_can_be_computed(engine):
    finished = as_finished(str, range(20), engine)
    next(finished)
    finished.close()
    assert map_items(str, range(3), engine) == ["0", "1", "2"]


def test_without_items_there_are_no_results(engine):
    assert map_items(str, [], engine) == []


def refuse(item):
    if item == 3:
        raise UndoorError("item 3 is spoilt; remove it")
    return item


def test_an_error_that_the_user_can_mend_is_passed_on(engine):
    with pytest.raises(UndoorError) as caught:
        map_items(refuse, range(6), engine)
    assert str(caught.value) == "item 3 is spoilt; remove it"


def test_any_other_error_keeps_its_type(engine):
    with pytest.raises(ZeroDivisionError):
        map_items(partial(divmod, 1), [1, 0], engine)


def process_ids(_):
    """Return the ids of this process and of those that compute the items of a nested call."""
    return {os.getpid(), *map_items(process_id, range(3), Engine("processes", 2))}


def process_id(_):
    return os.getpid()


variable = ContextVar("variable", default="default")


def read_variable(_):
    return variable.get()


def test_threads_share_the_context_variables_of_the_caller():
    token = variable.set("set by the caller")
    try:
        for workers in (1, 2):
            assert map_items(read_variable, range(4), workers) == ["set by the caller"] * 4
    finally:
        variable.reset(token)
    assert map_items(read_variable, range(2), 2) == ["default"] * 2


def test_the_items_of_a_nested_call_stay_in_their_process(engine):
    assert [len(processes) for processes in map_items(process_ids, range(2), engine)] == [1, 1]


def test_the_findings_are_the_same_on_every_engine(engine):
    evidence = plant().evidence
    expected = ClusterImpurity(**QUICKLY)(evidence)
    with remembered_clusterings():
        repeated = [ClusterImpurity(**{**QUICKLY, "workers": engine})(evidence) for _ in range(2)]
    for findings in repeated:
        assert findings.samples.equals(expected.samples)
        assert findings.clusters.equals(expected.clusters)
        assert findings.provenance.settings == expected.provenance.settings


def test_the_pass_over_the_images_gives_the_same_bits_on_every_engine(engine, network, dataset, monkeypatch):
    monkeypatch.setattr("undoor.evidence.collect.SHARD", 16)
    classifier, h = Classifier(network, mean=[0.3], std=[0.2]), str(Average())
    local, other = (collect(classifier, dataset, batch_size=8, engine=e) for e in (Engine("local"), engine))
    for expected, outputs in ((local.plain, other.plain), (local.filtered[h], other.filtered[h])):
        assert np.array_equal(outputs.features, expected.features)
        assert np.array_equal(outputs.logits, expected.logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("dask",), "no engine 'dask'; choose local, processes, ray"),
        (("processes", 0), "number of workers is 0"),
        (("processes", 2, 0.5), "0.5 GPUs an item cannot be had on processes"),
        (("ray", None, -1.0), "-1.0 GPUs an item"),
    ],
)
def test_impossible_engines_are_refused(options, message):
    with pytest.raises(UndoorError, match=message):
        Engine(*options)


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UndoorError, match=r"pip install 'undoor\[ray\]'"):
        map_items(str, range(2), Engine("ray"))


def test_a_cluster_without_gpus_is_refused_at_once(cluster):
    with pytest.raises(UndoorError, match="has no GPU; add a node that has one"):
        map_items(str, range(2), Engine("ray", gpus=0.5))


def kill_process(item):
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error(engine, monkeypatch):
    if engine.kind == "local":
        pytest.skip("the process that runs this test would be killed")
    monkeypatch.setattr("undoor.engine.RETRIES", 1)
    with pytest.raises(UndoorError, match=r"process was killed|was tried 2 times"):
        map_items(kill_process, range(2), engine)


def node_id():
    import ray

    return ray.get_runtime_context().get_node_id()


def features(shard, classifier, folder, doomed):
    """Return the outputs of a shard of images. The doomed node hangs in its second shard; others wait until it does."""
    number, images = shard
    (folder / f"{time.time_ns()}-{node_id()}-{number}").touch()
    if node_id() != doomed:
        wait_for(lambda: len(started_shards(folder, doomed)) > 1)
    elif len(started_shards(folder, doomed)) > 1:
        time.sleep(600)
    return tuple(part.numpy() for part in classifier.features_and_logits(classifier.scale(images)))


def started_shards(folder, node=""):
    """Return the numbers of the shards that were started on a node, or on any node, in the order of their starts."""
    return [int(path.name.split("-")[2]) for path in sorted(folder.glob(f"*-{node}*-*"))]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds} seconds"
        time.sleep(0.02)


def test_a_node_that_dies_in_a_pass_costs_only_what_ran_there(doomed, network, tmp_path):
    name, kill = doomed
    classifier = Classifier(network)
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 12, 12), dtype=np.uint8)
    shards = list(enumerate(np.split(images, 12)))
    finished = {}
    for number, outputs in as_finished(
        partial(features, classifier=classifier, folder=tmp_path, doomed=name), shards, Engine("ray")
    ):
        finished[number] = outputs
        if name and len(started_shards(tmp_path, name)) == 2:
            kept, lost = started_shards(tmp_path, name)
            assert kept in finished
            kill()
            name = None
    assert sorted(started_shards(tmp_path)) == sorted([*range(12), lost])
    with one_thread():
        local = [classifier.features_and_logits(classifier.scale(part)) for _, part in shards]
    for number, expected in enumerate(local):
        for outputs, expected_outputs in zip(finished[number], expected, strict=True):
            np.testing.assert_array_equal(outputs, expected_outputs.numpy())


@dataclass(frozen=True)
class Hanging:
    """A defense that flags three images at random. On the doomed node it hangs; other nodes wait until that is dead."""

    method_version: ClassVar[int] = 1

    folder: str
    doomed: str

    def __call__(self, evidence):
        if node_id() == self.doomed:
            Path(self.folder, "hangs").touch()
            time.sleep(600)
        wait_for(Path(self.folder, "killed").exists)
        return RandomRemoval(3)(evidence)


def contents(store):
    """Return the results in a store without their times and their hardware."""
    return {
        kind: {key: {k: v for k, v in result.items() if k != "hardware"} for key, result in kept.items()}
        for kind, kept in results_without_times(store).items()
    }


@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_a_suite_gives_the_same_results_on_every_engine(kind, request, tmp_path):
    if kind == "ray":
        request.getfixturevalue("cluster")
    boards = []
    other = Bench(make_suite(), Store(tmp_path / kind), engine=Engine(kind, 2), on_change=lambda b, _: boards.append(b))
    assert other.run().finished
    assert len(boards) > 2
    with one_thread():
        local = Bench(make_suite(), Store(tmp_path / "local"))
        assert local.run().cells == boards[-1].cells
    assert contents(other.store) == contents(local.store)


def test_a_node_that_dies_in_a_suite_costs_only_what_ran_there(doomed, tmp_path):
    name, kill = doomed
    store = Store(tmp_path / "store")
    waiting = on_training_set("waits", Hanging, lambda _: Hanging(str(tmp_path), name), retrain=True)
    victims = {}

    def kill_when_both_victims_are_stored():
        wait_for((tmp_path / "hangs").exists)
        wait_for(lambda: len(store.all("victims")) == 2)
        victims.update({path: path.stat().st_mtime_ns for path in (store.root / "work" / "victims").iterdir()})
        kill()
        (tmp_path / "killed").touch()

    killer = threading.Thread(target=kill_when_both_victims_are_stored)
    killer.start()
    board = Bench(make_suite(contenders=(QUICK_CI, waiting)), store, engine=Engine("ray")).run()
    killer.join()
    assert board.finished
    assert {path: path.stat().st_mtime_ns for path in victims} == victims
    assert len(victims) == 4
    assert len(store.all("findings")) == 4
