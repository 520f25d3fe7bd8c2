import os
import secrets
import signal
import sys
import threading
import time
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
from undoor.networks.classifier import Classifier

# When Ray starts its processes on a busy machine it may give one up and start another.
pytestmark = pytest.mark.filterwarnings(r"ignore:[\s\S]*Popen.__del__:pytest.PytestUnraisableExceptionWarning")

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
NOTICES_A_DEATH = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def head():
    """A Ray cluster on this machine, of one node with one core, whose address stands in RAY_ADDRESS."""
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
    """The second node's name, and what kills it."""
    (node,) = cluster.worker_nodes
    return node.node_id, partial(cluster.remove_node, node, allow_graceful=False)


@pytest.fixture(params=["local", "processes", "ray"])
def engine(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return Engine(request.param, workers=2)


def products(item, matrix):
    return np.linalg.inv(matrix @ matrix.T + item * np.eye(len(matrix)))


def test_every_engine_gives_the_same_bits_in_order(engine):
    work = partial(products, matrix=np.random.default_rng(0).normal(size=(150, 150)))
    with one_thread():
        expected = [work(item) for item in range(1, 8)]
    np.testing.assert_array_equal(map_items(work, range(1, 8), engine), expected)


def slowly(item):
    time.sleep(0.1)
    return str(item)


def test_results_come_as_they_are_finished_and_items_are_asked_for_late(engine):
    asked = []
    items = (asked.append(item) or item for item in range(20))
    finished = as_finished(slowly, items, engine)
    seen = [next(finished)]
    assert len(asked) < 20
    seen += finished
    assert sorted(seen) == [(item, str(item)) for item in range(20)]


def test_who_leaves_early_can_begin_anew(engine):
    finished = as_finished(str, range(20), engine)
    next(finished)
    finished.close()
    assert map_items(str, range(3), engine) == ["0", "1", "2"]


def test_no_items(engine):
    assert map_items(str, [], engine) == []


def refuse(item):
    if item == 3:
        raise UndoorError("item 3 is spoilt; remove it")
    return item


def test_an_error_the_user_can_mend_is_one_line(engine):
    with pytest.raises(UndoorError) as caught:
        map_items(refuse, range(6), engine)
    assert str(caught.value) == "item 3 is spoilt; remove it"


def test_a_fault_keeps_its_type(engine):
    with pytest.raises(ZeroDivisionError):
        map_items(partial(divmod, 1), [1, 0], engine)


def own_process(_):
    return {os.getpid(), *map_items(_process, range(3), Engine("processes", 2))}


def _process(_):
    return os.getpid()


def test_an_item_that_maps_items_stays_in_its_process(engine):
    assert [len(processes) for processes in map_items(own_process, range(2), engine)] == [1, 1]


def test_the_findings_of_a_cluster_are_those_of_one_process(engine):
    evidence = plant().evidence
    one, other = (ClusterImpurity(**{**QUICKLY, "workers": w})(evidence) for w in (Engine("local"), engine))
    assert one.samples.equals(other.samples)
    assert one.clusters.equals(other.clusters)
    assert one.settings == other.settings


def test_the_pass_gives_the_same_bits_everywhere(engine, network, dataset, monkeypatch):
    monkeypatch.setattr("undoor.evidence.evidence.SHARD", 16)
    classifier, h = Classifier(network, mean=[0.3], std=[0.2]), str(Average())
    one, other = (collect(classifier, dataset, batch_size=8, engine=e) for e in (Engine("local"), engine))
    for mine, theirs in ((one.plain, other.plain), (one.filtered[h], other.filtered[h])):
        assert np.array_equal(mine.features, theirs.features)
        assert np.array_equal(mine.logits, theirs.logits)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("dask",), "no engine 'dask'; choose local, processes, ray"),
        (("processes", 0), "number of workers is 0"),
        (("processes", 2, 0.5), "0.5 GPUs an item cannot be had on processes"),
        (("ray", None, -1.0), "-1.0 GPUs an item"),
    ],
)
def test_what_an_engine_cannot_be(options, told):
    with pytest.raises(UndoorError, match=told):
        Engine(*options)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UndoorError, match=r"pip install 'undoor\[ray\]'"):
        map_items(str, range(2), Engine("ray"))


def test_a_cluster_without_gpus_is_told_at_once(cluster):
    with pytest.raises(UndoorError, match="has no GPU; add a node that has one"):
        map_items(str, range(2), Engine("ray", gpus=0.5))


def killing(item):
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told(engine, monkeypatch):
    if engine.kind == "local":
        pytest.skip("it would be this one")
    monkeypatch.setattr("undoor.engine.RETRIES", 1)
    with pytest.raises(UndoorError, match=r"process was killed|was tried 2 times"):
        map_items(killing, range(2), engine)


def node():
    import ray

    return ray.get_runtime_context().get_node_id()


def features(shard, classifier, folder, doomed):
    """Return the outputs of a shard of images. The doomed node hangs in its second shard, others wait until it does."""
    number, images = shard
    (folder / f"{time.time_ns()}-{node()}-{number}").touch()
    if node() != doomed:
        wait_for(lambda: len(begun(folder, doomed)) > 1)
    elif len(begun(folder, doomed)) > 1:
        time.sleep(600)
    return tuple(part.numpy() for part in classifier.features_and_logits(classifier.scale(images)))


def begun(folder, name=""):
    """Return the shards that were begun on a node, or on any, in their order."""
    return [int(path.name.split("-")[2]) for path in sorted(folder.glob(f"*-{name}*-*"))]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
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
        if name and len(begun(tmp_path, name)) == 2:
            kept, lost = begun(tmp_path, name)
            assert kept in finished
            kill()
            name = None
    assert sorted(begun(tmp_path)) == sorted([*range(12), lost])
    with one_thread():
        local = [classifier.features_and_logits(classifier.scale(part)) for _, part in shards]
    for number, expected in enumerate(local):
        for got, wanted in zip(finished[number], expected, strict=True):
            np.testing.assert_array_equal(got, wanted.numpy())


@dataclass(frozen=True)
class Hanging:
    """A defense that flags three images at random. On the doomed node it hangs; other nodes wait until that is dead."""

    method_version: ClassVar[int] = 1

    folder: str
    doomed: str

    def __call__(self, evidence):
        if node() == self.doomed:
            Path(self.folder, "hangs").touch()
            time.sleep(600)
        wait_for(Path(self.folder, "killed").exists)
        return RandomRemoval(3)(evidence)


def contents(store):
    """Return every result in the store but its times and the hardware."""
    return {
        kind: {key: {k: v for k, v in result.items() if k != "hardware"} for key, result in kept.items()}
        for kind, kept in results_without_times(store).items()
    }


@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_a_grid_gives_the_same_everywhere(kind, request, tmp_path):
    if kind == "ray":
        request.getfixturevalue("cluster")
    boards = []
    other = Bench(make_suite(), Store(tmp_path / kind), engine=Engine(kind, 2), on_change=lambda b, _: boards.append(b))
    assert other.run().finished
    assert len(boards) > 2
    with one_thread():
        here = Bench(make_suite(), Store(tmp_path / "local"))
        assert here.run().cells == boards[-1].cells
    assert contents(other.store) == contents(here.store)


def test_a_node_that_dies_in_a_grid_costs_only_what_ran_there(doomed, tmp_path):
    name, kill = doomed
    store = Store(tmp_path / "store")
    waiting = on_training_set("waits", Hanging, lambda _: Hanging(str(tmp_path), name), retrain=True)
    victims = {}

    def at_the_right_moment():
        wait_for((tmp_path / "hangs").exists)
        wait_for(lambda: len(store.all("victims")) == 2)
        victims.update({path: path.stat().st_mtime_ns for path in (store.root / "work" / "victims").iterdir()})
        kill()
        (tmp_path / "killed").touch()

    killer = threading.Thread(target=at_the_right_moment)
    killer.start()
    board = Bench(make_suite(contenders=(QUICK_CI, waiting)), store, engine=Engine("ray")).run()
    killer.join()
    assert board.finished
    assert {path: path.stat().st_mtime_ns for path in victims} == victims
    assert len(victims) == 4
    assert len(store.all("findings")) == 4
