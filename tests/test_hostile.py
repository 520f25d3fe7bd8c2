"""Whatever is given to undoor ends in one line, runs no code and takes neither the memory nor the time of others."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hostile.archives
import hostile.images
import hostile.networks
import hostile.results
import hostile.tables  # noqa: F401 - each adds its cases
import undoor
from conftest import QUICKLY, Linear, make_dataset
from hostile import CASES
from test_readers import write_folder
from undoor.attacks import write_attack
from undoor.data.readers.parquet import write_parquet
from undoor.defenses.test_time import Ada
from undoor.defenses.training_set import ClusterImpurity
from undoor.filters import Average
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import PRESETS
from undoor.networks.training import train
from undoor.networks.victims import fit_victim
from undoor.report import write_findings
from undoor.scanning import scan

SECONDS, MEMORY = 10.0, 10**9
PATIENCE = 60.0
"""Seconds after which a child is killed: others may need the processor too, so that its own seconds are counted."""


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Good files, beside which the hostile ones are laid."""
    root = tmp_path_factory.mktemp("base")
    dataset = make_dataset(n_per_class=30)
    write_folder(dataset, root / "photos")
    write_parquet(dataset, root / "photos.parquet")
    names = np.array(dataset.class_names)
    np.savez_compressed(root / "photos.npz", images=dataset.images, labels=dataset.labels, class_names=names)
    photos = undoor.read(root / "photos")
    recipe = replace(PRESETS["fast"], epochs=8, batch_size=16)
    model = fit_victim(photos, recipe, root / "model.safetensors")
    write_findings(scan(model, photos, ClusterImpurity(**QUICKLY)), photos, Average(), root / "findings")
    Ada().fit(Classifier(model), photos).write(root / "guard.safetensors")
    attack = undoor.Attack.one_pixel(photos, target="class1", count=6, size=0.5)
    write_attack(attack, root / "attack.json")
    save_file(Linear().state_dict(), root / "linear.safetensors")
    torch.save(Linear().state_dict(), root / "linear.pt")

    def kill(step):
        if step.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(photos, replace(PRESETS["fast"], epochs=2), checkpoint=root / "new.checkpoint", on_step=kill)
    return root


@pytest.fixture(scope="module")
def server():
    here = Path(__file__).parent
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    command = [sys.executable, str(here / "hostile" / "runner.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **alone, **offline}, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(server):
    def call(folder, arguments):
        asked = {"folder": str(folder), "arguments": list(arguments), "seconds": PATIENCE}
        print(json.dumps(asked), file=server.stdin, flush=True)
        ended = json.loads(server.stdout.readline())
        texts = ((folder / name).read_text(errors="surrogateescape") for name in ("stdout", "stderr"))
        return ended, *texts

    return call


@pytest.mark.parametrize("name", list(CASES))
def test_hostile_file(run, base, tmp_path, name):
    case = CASES[name]
    root = tmp_path / "root"
    shutil.copytree(base, root)
    arguments = (*case.make(root), "--quiet")
    ended, out, err = run(root, arguments)
    told = f"undoor {' '.join(arguments)[:500]}: {ended}\n{out[-1000:]}{err[-3000:]}"

    assert ended["code"] != -9, f"was killed, {told}"
    assert ended["seconds"] < SECONDS, f"took too long, {told}"
    assert ended["memory"] < MEMORY, f"took too much memory, {told}"
    assert not (root / "marker").exists(), f"ran code, {told}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"], f"wrote outside of its folder, {told}"
    assert all(c.isprintable() or c == "\n" for c in out + err), f"wrote control characters, {told}"
    *notes, last = err.splitlines() or [""]
    assert ended["code"] == (2 if case.ends == "error" else 0), told
    if case.ends == "error":
        assert last.startswith("error: "), told
        assert case.told in last, f"was to say {case.told!r}, {told}"
    else:
        notes.append(last)
        assert case.ends == "well" or any(case.told in note for note in notes), f"was to say {case.told!r}, {told}"
    assert all(note.startswith("note: ") for note in notes if note), f"said more, {told}"
    case.check(root)


def test_there_are_many_and_the_good_files_are_good(run, base, tmp_path):
    assert len(CASES) >= 100
    root = tmp_path / "root"
    shutil.copytree(base, root)
    network = ("--network", "conftest:linear_network")
    for arguments in (
        ("scan", "photos.parquet", "--model", "linear.pt", *network, "--out", "out"),
        ("scan", "photos.npz", "--model", "linear.safetensors", *network, "--out", "out2"),
        ("report", "findings", "--data", "photos"),
        ("clean", "photos", "--findings", "findings", "--out", "clean"),
        ("guard", "check", "model.safetensors", "--guard", "guard.safetensors", "--data", "photos", "--exit-zero"),
        ("train", "photos", "--epochs", "2", "--out", "new.safetensors"),
    ):
        ended, _, err = run(root, arguments)
        assert ended["code"] in (0, 1), (arguments, err)
