"""A process that writes dies at its n-th file operation, for every n: readers find the old, the new or nothing."""

import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from conftest import QUICKLY, Linear, make_dataset, plant
from undoor.data.readers import read
from undoor.data.readers.parquet import write_parquet
from undoor.defenses.training_set import ClusterImpurity
from undoor.errors import UndoorError
from undoor.evidence import Outputs
from undoor.evidence.shards import keep, kept, kept_until_done
from undoor.experiments.store import Store
from undoor.findings.reading import read_findings, read_ids
from undoor.networks.checkpoint import Checkpoint
from undoor.networks.recipes import PRESETS
from undoor.networks.victims import fit_victim
from undoor.networks.weights import Architecture, load_model, save_model
from undoor.storage.atomic import atomic_folder, staged, write_text
from undoor.storage.lock import claimed

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


class DeadError(BaseException):
    """Raised by every file operation of a dead process, which therefore cleans nothing up."""


@dataclass
class Life:
    """The number of file operations below a folder before the process dies; None if it does not die."""

    operations: int | None = None
    folder: str = ""


LIFE = Life()


def count(event, arguments):
    if LIFE.operations is None or event not in EVENTS:
        return
    path = str(arguments[0])
    within_opened = event in ("os.remove", "os.rmdir") and arguments[1] != -1
    if path.startswith(LIFE.folder) or within_opened:
        LIFE.operations -= 1
        if LIFE.operations < 0:
            raise DeadError


sys.addaudithook(count)


@contextmanager
def dying(operations, folder):
    LIFE.operations, LIFE.folder = operations, str(folder)
    try:
        yield
    finally:
        LIFE.operations = None


def findings(seed):
    return ClusterImpurity(seed=seed, **QUICKLY)(plant(seed, classes=3, clean=30, poison=20).evidence)


FOUND = {kind: findings(seed) for seed, kind in enumerate(("old", "new"))}


def write_findings(out, kind):
    FOUND[kind].write(out, f"report {kind}", overwrite=True)


def same_findings(out):
    found = read_findings(out)
    scanned, kept_ids = read_ids(out)
    assert len(scanned) == len(found.samples)
    assert len(kept_ids) == int((~found.flagged).sum())
    return found.samples.to_json(), found.clusters.to_json(), found.curves.to_json(), found.provenance.seed


def write_several(out, kind):
    """Write several files as an inspection does; one of them has another name in each kind."""
    with staged(out, last="summary.json", stale=out.glob("picture-*")) as folder:
        for name in ("a", "b", f"picture-{kind}", "summary.json"):
            (folder / name).write_text(f"{name} {kind}")


def read_several(out):
    if not (out / "summary.json").exists():
        raise UndoorError("not there")
    return {path.name: path.read_text() for path in out.iterdir() if not path.name.startswith(".")}


def write_beside(out, kind):
    """Write files as for a repaired network, in a folder that may hold other files."""
    with staged(out.parent, last=out.name) as folder:
        (folder / f"{out.name}.json").write_text(kind)
        (folder / out.name).write_text(kind)


def read_beside(out):
    if not out.exists():
        raise UndoorError("not there")
    return out.read_text(), out.with_name(f"{out.name}.json").read_text()


def write_new_folder(out, kind):
    if kind == "new" and not out.exists():
        with atomic_folder(out) as folder:
            write_parquet(make_dataset(n_per_class=3), folder / "train.parquet")
            write_text(folder / "attack.json", "{}")


def state(kind):
    return {"model": {"a": torch.full((300,), float(kind == "new"))}, "epoch": 1}


def write_checkpoint(out, kind):
    checkpoint = Checkpoint(out)
    checkpoint.resume({"data": "x"}, torch.device("cpu"))
    checkpoint.keep(state(kind), last=False)


def read_checkpoint(out):
    held = Checkpoint(out).resume({"data": "x"}, torch.device("cpu"))
    return None if held is None else held["model"]["a"].tolist()


def write_shard(out, kind):
    keep(out, [np.full((40, 3), kind == "new", np.float32)])


def read_shard(out):
    arrays = kept(out)
    return None if arrays is None else arrays[0].tolist()


def write_network(out, kind):
    model = Linear()
    torch.nn.init.constant_(model.out.bias, float(kind == "new"))
    save_model(model, Architecture("conftest:linear_network", (1, 12, 12), ("a", "b", "c"), {}), out)


def read_network(out):
    return load_model(out, "conftest:linear_network")[0].out.bias.tolist()


def write_result(out, kind):
    Store(out).write("findings", "k", {"x": kind})


def write_outputs(out, kind):
    Store(out).keep_outputs("k", Outputs(*(np.full((9, 4), kind == "new", np.float32) for _ in range(2))))


def read_outputs(out):
    store = Store(out)
    return store.outputs("k").features.tolist() if store.has_outputs("k") else None


CASES = {
    "findings": (write_findings, same_findings),
    "several files": (write_several, read_several),
    "files beside others": (write_beside, read_beside),
    "a new folder": (write_new_folder, lambda out: read(out).fingerprint()),
    "a text": (write_text, lambda out: out.read_text()),
    "a checkpoint": (write_checkpoint, read_checkpoint),
    "a shard": (write_shard, read_shard),
    "a network": (write_network, read_network),
    "a result": (write_result, lambda out: Store(out).read("findings", "k")),
    "outputs": (write_outputs, read_outputs),
}  # fmt: skip


def held(read_it, out):
    """Return what a reader finds; None if it reports that there is nothing."""
    try:
        return read_it(out)
    except FileNotFoundError:
        return None
    except UndoorError as error:
        if any(words in str(error) for words in ("not there", "no whole findings", "is no file", "does not exist")):
            return None
        raise


def files(folder):
    """Return the content of every file, except those that begin with a dot, which no reader opens."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).as_posix().startswith(".") and "/." not in path.as_posix()
    }


@pytest.mark.parametrize("before", ["nothing", "old"])
@pytest.mark.parametrize("case", CASES)
def test_a_reader_finds_the_old_or_the_new_or_nothing(case, before, tmp_path):
    write, read_it = CASES[case]
    name = "out.safetensors" if case == "a network" else "out"
    kinds = {}
    for kind in ("old", "new"):
        write(tmp_path / kind / name, kind)
        kinds[kind] = held(read_it, tmp_path / kind / name), files(tmp_path / kind)
    nothing = before == "nothing" or case == "a new folder"
    values = [kinds["new"][0], None if nothing else kinds["old"][0]]
    assert values[0] != values[1]
    if case in ("findings", "several files", "files beside others"):
        values.append(None)  # several files cannot be replaced at once, so that for a moment there is nothing

    died = 0
    while True:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        if nothing:
            folder.mkdir()
        else:
            shutil.copytree(tmp_path / "old", folder)
        out = folder / name
        try:
            with dying(died, folder):
                write(out, "new")
            break
        except DeadError:
            died += 1
        for part in folder.rglob(".*.part"):
            for file in [part] if part.is_file() else part.rglob("*"):
                if file.is_file():  # it was being written when the process died
                    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert held(read_it, out) in values
        visible = files(folder)
        news, olds = ({n for n in visible if visible[n] == kinds[k][1].get(n)} for k in ("new", "old"))
        assert news | olds == set(visible)
        assert set(visible) in (news, olds), "old files lie beside new ones"
        with claimed(out):
            write(out, "new")
        assert held(read_it, out) == kinds["new"][0]
        assert files(folder) == kinds["new"][1]
        assert not [path for path in folder.rglob(".*") if path.name != ".gitignore"]
    assert died > 2
    assert files(folder) == kinds["new"][1]


def test_shards_whose_removal_is_interrupted_are_whole_or_gone(tmp_path):
    arrays = [np.arange(12, dtype=np.float32).reshape(4, 3)]
    died = 0
    while True:
        folder = tmp_path / str(died)
        for number in range(3):
            keep(folder / f"{number}.safetensors", arrays)
        try:
            with dying(died, tmp_path), kept_until_done(folder):
                pass
            break
        except DeadError:
            died += 1
        for number in range(3):
            found = kept(folder / f"{number}.safetensors")
            assert found is None or np.array_equal(found[0], arrays[0])
    assert died > 3


def test_a_death_after_the_last_epoch_leaves_no_checkpoint_behind(tmp_path, dataset):
    recipe = replace(PRESETS["fast"], epochs=2, batch_size=16)
    suffixes = set()
    for operations in range(40):
        folder = tmp_path / str(operations)
        try:
            with dying(operations, folder):
                fit_victim(dataset, recipe, folder / "victim.safetensors")
            break
        except DeadError:
            suffixes.add(tuple(sorted(p.suffix for p in folder.glob("*"))))
        with claimed(folder / "victim.safetensors"):
            fit_victim(dataset, recipe, folder / "victim.safetensors")
        assert [path.name for path in folder.iterdir()] == ["victim.safetensors"]
    whole = (folder / "victim.safetensors").read_bytes()
    assert {(path / "victim.safetensors").read_bytes() for path in tmp_path.iterdir()} == {whole}
    assert (".checkpoint", ".safetensors") in suffixes
