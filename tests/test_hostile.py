"""A hostile file ends in an error of one line, runs no code, and takes neither much memory nor much time.

The cases are in ``hostile``.
"""

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
import hostile.tables  # noqa: F401 - each of these modules adds its cases
import undoor
from conftest import QUICKLY, Linear, make_dataset
from helpers.image_folders import write_folder
from hostile import CASES
from undoor.attacks import write_attack
from undoor.data.readers.parquet import write_parquet
from undoor.defenses.test_time import Ada
from undoor.defenses.training_set import ClusterImpurity
from undoor.filters import Average
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import PRESETS
from undoor.networks.training import train
from undoor.networks.victims import fit_victim
from undoor.report.findings import write_findings
from undoor.scanning import scan

SECONDS, MEMORY = 10.0, 10**9
"""The seconds of a processor and the bytes that a command may use."""

PATIENCE = 60.0
"""Seconds after which a command is killed: more than ``SECONDS``, because the processor may be shared with others."""


class KilledError(Exception):
    """Ends a training."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with good files, to a copy of which each case adds its hostile file."""
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
    """The process of ``hostile/runner.py``."""
    tests = Path(__file__).parent
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    command = [sys.executable, str(tests / "hostile" / "runner.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **one_thread, **offline}, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(server):
    """Return a function that runs undoor in a folder and returns how it ended, its output and its errors."""

    def call(folder, arguments):
        request = {"folder": str(folder), "arguments": list(arguments), "seconds": PATIENCE}
        print(json.dumps(request), file=server.stdin, flush=True)
        ended = json.loads(server.stdout.readline())
        texts = ((folder / name).read_text(errors="surrogateescape") for name in ("stdout", "stderr"))
        return ended, *texts

    return call


@pytest.mark.parametrize("name", list(CASES))
def test_a_hostile_file_does_no_harm(run, base, tmp_path, name):
    case = CASES[name]
    root = tmp_path / "root"
    shutil.copytree(base, root)
    arguments = (*case.make(root), "--quiet")
    ended, out, err = run(root, arguments)
    report = f"undoor {' '.join(arguments)[:500]}: {ended}\n{out[-1000:]}{err[-3000:]}"

    assert ended["code"] != -9, f"was killed, {report}"
    assert ended["seconds"] < SECONDS, f"took too long, {report}"
    assert ended["memory"] < MEMORY, f"took too much memory, {report}"
    assert not (root / "marker").exists(), f"ran code, {report}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"], f"wrote outside of its folder, {report}"
    assert all(c.isprintable() or c == "\n" for c in out + err), f"wrote control characters, {report}"
    *notes, last = err.splitlines() or [""]
    assert ended["code"] == (2 if case.ends == "error" else 0), report
    if case.ends == "error":
        assert last.startswith("error: "), report
        assert case.message in last, f"does not say {case.message!r}, {report}"
    else:
        notes.append(last)
        says = any(case.message in note for note in notes)
        assert case.ends == "well" or says, f"does not say {case.message!r}, {report}"
    assert all(note.startswith("note: ") for note in notes if note), f"says more, {report}"
    case.check(root)


def test_there_are_many_cases_and_the_good_files_are_accepted(run, base, tmp_path):
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
