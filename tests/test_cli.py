# ruff: noqa: F811 - fixtures are imported, and are parameters too
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import undoor
from conftest import Linear, make_dataset
from helpers.command_line import NETWORK, command_names, data, find_command, run, tree  # noqa: F401 - fixtures
from helpers.image_folders import write_folder
from undoor.attacks import write_attack


def victim(data):
    """Return options for a scan with a network that was trained on the images, and a filter that destroys them."""
    return "--model", data / "victim.safetensors", "--filter", "average:12"


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from undoor import cli; sys.argv = ['undoor', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'sklearn', 'scipy', 'pyarrow', 'PIL', 'jinja2', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "scan" in ran.stdout


@pytest.mark.parametrize("command", ["", "guard", *command_names()])
def test_every_command_explains_itself(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage: undoor" in out


def test_version(run):
    assert run("--version")[:2] == (0, f"undoor {undoor.__version__}\n")


def test_the_reference_of_the_command_line_is_current():
    reference = import_module("tools.write_cli_reference")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python -m tools.write_cli_reference"
    for command in command_names():
        assert f"\n## undoor {command}\n" in reference.page()


def test_training_data_is_read_from_the_training_split_and_clean_images_from_the_test_split():
    splits = {}
    for command in command_names():
        defaults = {parameter.name: parameter.default for parameter in find_command(command)[0].params}
        if "split" in defaults:
            splits[command] = defaults["split"]
    training = dict.fromkeys(("poison", "train", "scan", "clean", "report"), "train")
    assert splits == training | dict.fromkeys(("inspect", "prune", "guard fit", "guard check"), "test")


def test_the_module_is_the_command():
    ran = subprocess.run([sys.executable, "-m", "undoor", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"undoor {undoor.__version__}\n"


def test_the_way_from_poisoning_to_cleaning_on_a_parquet_set(run, data, tmp_path):
    poisoned, findings, kept = tmp_path / "poisoned", tmp_path / "findings", tmp_path / "kept"
    code, out, _ = run("poison", data / "images.parquet", "--out", poisoned, "--target", "class1", "--count", 12,
                       "--size", 0.6, "--position", "1,2", "--source", "class0")  # fmt: skip
    assert code == 0
    assert "102 images, 12 of them poisoned: pixel 1,2" in out
    attack = json.loads((poisoned / "attack.json").read_text())
    assert attack["sources"] == ["class0"]
    read = undoor.read(poisoned)
    assert read.truth.poisoned.sum() == 12

    model = tmp_path / "m.safetensors"
    code, out, _ = run("train", poisoned, "--out", model, "--epochs", 2, "--test", data / "images.parquet",
                       "--attack", poisoned / "attack.json")  # fmt: skip
    assert code == 0
    assert "clean accuracy" in out
    assert "attack success rate" in out

    code, out, _ = run("scan", poisoned, "--model", model, "--out", findings, "--threshold", 0.01, "--exit-zero",
                       "--decision", "plain")  # fmt: skip
    assert code == 0
    assert "tpr" in out
    summary = json.loads((findings / "summary.json").read_text())
    assert summary["truth"]["tp"] + summary["truth"]["fn"] == 12
    samples = pd.read_parquet(findings / "samples.parquet")

    code, out, _ = run("clean", poisoned, "--findings", findings, "--out", kept)
    assert code == 0
    table = pq.read_table(kept / "train.parquet")
    assert table.num_rows == (~samples["flagged"]).sum()
    assert np.array_equal(undoor.read(kept).images, read.images[~samples["flagged"]])
    assert "poisoned" in table.column_names


def test_optimised_trigger(run, data, tmp_path):
    code, out, _ = run("poison", data / "images.parquet", "--out", tmp_path / "poisoned", "--target", "class1",
                       "--count", 12, "--size", 0.3, "--optimise", data / "victim.safetensors",
                       "--pixels", 2, "--psnr", 20)  # fmt: skip
    assert code == 0
    assert "12 of them poisoned: pixels " in out
    change, quality = map(float, re.search(r"ℓ∞ ([\d.]+), PSNR ([\d.]+) dB", out).groups())
    assert change == pytest.approx(0.3, abs=0.003)
    assert quality >= 20
    attack = json.loads((tmp_path / "poisoned" / "attack.json").read_text())
    assert attack["trigger"]["kind"] == "Pixels"
    assert len(attack["trigger"]["changes"]) == 2
    code, out, _ = run("train", tmp_path / "poisoned", "--out", tmp_path / "m.safetensors", "--epochs", 1, "--test",
                       data / "images.parquet", "--attack", tmp_path / "poisoned" / "attack.json")  # fmt: skip
    assert code == 0
    assert "attack success rate" in out


def test_scan_without_a_model_trains_one_and_keeps_it(run, data, tmp_path):
    out = tmp_path / "findings"
    code, _, err = run("scan", data / "images.npz", "--out", out, "--epochs", 8)
    assert code == {"clean": 0, "poisoned": 1}[json.loads((out / "summary.json").read_text())["verdict"]]
    assert "epoch 8/8" in err
    assert "victim.safetensors" in tree(out)
    assert not any(name.endswith((".checkpoint", ".part")) for name in tree(out))
    first = pd.read_parquet(out / "samples.parquet")
    # A second training and scan, into another folder, gives the same findings.
    run("scan", data / "images.npz", "--out", tmp_path / "again", "--epochs", 8)
    pd.testing.assert_frame_equal(first, pd.read_parquet(tmp_path / "again" / "samples.parquet"))


@pytest.mark.parametrize("threshold", [1e-6, 50])
def test_the_exit_code_is_the_verdict(run, data, tmp_path, threshold):
    command = ("scan", data / "images", *victim(data), "--out", tmp_path / "f", "--decision", "plain",
               "--threshold", threshold)  # fmt: skip
    code, out, _ = run(*command)
    verdict = json.loads((tmp_path / "f" / "summary.json").read_text())["verdict"]
    assert out.startswith(verdict)
    assert code == {"poisoned": 1, "clean": 0}[verdict]
    assert verdict == ("clean" if threshold == 50 else "poisoned")
    again, out, _ = run(*command, "--overwrite", "--json")
    assert (again, json.loads(out)["verdict"]) == (code, verdict)


def test_class_names_stay_text_in_the_terminal(run, data, tmp_path):
    dataset = make_dataset(n_per_class=30)
    for second, ends in (("b", 0), ("\x1b[31mb", 2)):
        names = np.array(["[red]a", second, "c"])
        np.savez(tmp_path / "x.npz", images=dataset.images, labels=dataset.labels, class_names=names)
        code, out, err = run("scan", tmp_path / "x.npz", "--model", data / "linear.safetensors", *NETWORK,
                             "--out", tmp_path / f"f{ends}", "--exit-zero")  # fmt: skip
        assert code == ends
        assert ("[red]a" in out) == (ends == 0)
        assert "\x1b" not in out + err
    assert "holds a control character" in err


def test_clean_copies_the_kept_files_of_a_folder(run, data, tmp_path):
    run("scan", data / "images", *victim(data), "--out", tmp_path / "f", "--decision", "plain",
        "--threshold", 1e-6)  # fmt: skip
    before = tree(data / "images")
    assert run("clean", data / "images", "--findings", tmp_path / "f", "--out", tmp_path / "kept")[0] == 0
    kept = (tmp_path / "f" / "keep.txt").read_text().splitlines()
    assert [name for name in tree(tmp_path / "kept") if name.endswith(".png")] == sorted(kept)
    assert 0 < len(kept) < 90
    assert tree(data / "images") == before
    for name in kept[:3]:
        assert (tmp_path / "kept" / name).read_bytes() == (data / "images" / name).read_bytes()


def test_clean_writes_arrays_as_lossless_parquet(run, data, tmp_path):
    run("scan", data / "images.npz", *victim(data), "--out", tmp_path / "f", "--decision", "plain",
        "--threshold", 1e-6)  # fmt: skip
    assert run("clean", data / "images.npz", "--findings", tmp_path / "f", "--out", tmp_path / "kept")[0] == 0
    kept = [int(name) for name in (tmp_path / "f" / "keep.txt").read_text().splitlines()]
    assert np.array_equal(undoor.read(tmp_path / "kept").images, make_dataset(n_per_class=30).images[kept])


def make_bad_inputs(root):
    (root / "empty").mkdir()
    dataset = make_dataset(n_per_class=4)
    write_folder(dataset.take(dataset.labels == 0), root / "one-class")
    write_folder(dataset, root / "broken")
    (root / "broken" / "class1" / "006.png").write_bytes(b"no image")
    write_folder(dataset.take(np.arange(9)), root / "single")
    np.savez(root / "labels.npz", images=dataset.images, labels=dataset.labels, class_names=np.array(["a", "b"]))
    with torch.no_grad():
        spoiled = Linear()
        spoiled.hidden.weight[0, 0] = float("nan")
    save_file(spoiled.state_dict(), root / "nan.safetensors")
    save_file(Linear(classes=5).state_dict(), root / "five.safetensors")
    save_file(torch.nn.Conv2d(1, 3, 12).state_dict(), root / "convolution.safetensors")
    (root / "pickled.pt").write_bytes(pickle.dumps(print))
    write_attack(undoor.Attack.one_pixel(dataset, target="class0", count=2, size=0.5), root / "attack.json")
    (root / "findings").mkdir()
    (root / "findings" / "summary.json").write_text("{}")


def five_classes():
    return Linear(classes=5)


def convolution():
    return torch.nn.Conv2d(1, 3, 12)


MODEL = ("--model", "{data}/linear.safetensors", *NETWORK)
SCAN = ("scan", "{data}/images", "--out", "{root}/out")
POISON = ("poison", "{data}/images", "--target", "class0", "--count", "4", "--out", "{root}/out")
OPTIMISE = (*POISON, "--optimise", "{data}/victim.safetensors")

BAD_INPUTS = {
    "missing path": (("scan", "{root}/nowhere", "--out", "{root}/out"), "does not exist"),
    "empty folder": (("scan", "{root}/empty", "--out", "{root}/out"), "no sub-folder with images"),
    "one class": (("scan", "{root}/one-class", "--out", "{root}/out"), "of one class"),
    "broken image": (("scan", "{root}/broken", "--out", "{root}/out"), r"1 of 12 images cannot be decoded: class1/006"),
    "class with one image": (("scan", "{root}/single", "--out", "{root}/out"), "class2 has only one image"),
    "labels out of range": (("scan", "{root}/labels.npz", "--out", "{root}/out"), "label 2 of sample 8 is outside"),
    "unknown split": (("scan", "digits", "--split", "x", "--out", "{root}/out"), "choose train or test"),
    "NaN features": (
        (*SCAN, "--model", "{root}/nan.safetensors", *NETWORK),
        "features of 90 of 90 samples are not finite",
    ),
    "other classes": (
        (*SCAN, "--model", "{root}/five.safetensors", "--network", "test_cli:five_classes"),
        "tells 5 classes apart, the data set has 3",
    ),
    "no linear layer": (
        (*SCAN, "--model", "{root}/convolution.safetensors", "--network", "test_cli:convolution"),
        "no linear layer",
    ),
    "pickled model": ((*SCAN, "--model", "{root}/pickled.pt", *NETWORK), "would run code"),
    "missing model": ((*SCAN, "--model", "{root}/nothing.safetensors"), "is no file"),
    "model without network": ((*SCAN, "--model", "{data}/linear.safetensors"), "--network package.module:factory"),
    "unknown layer": ((*SCAN, *MODEL, "--layer", "x"), "no layer 'x'; its linear layers: 'hidden', 'out'"),
    "unknown filter": ((*SCAN, *MODEL, "--filter", "blur"), "no filter is called 'blur'"),
    "unknown preset": ((*SCAN, "--preset", "slow"), "no preset 'slow'"),
    "threshold": ((*SCAN, *MODEL, "--threshold", "-1"), "above 0"),
    "decision": ((*SCAN, *MODEL, "--decision", "sure"), "no decision 'sure'; choose confident or plain"),
    "mean without numbers": ((*SCAN, *MODEL, "--mean", "a,b"), "--mean is 'a,b'"),
    "held findings": (("scan", "{data}/images", "--out", "{root}/findings"), "already holds findings.*--overwrite"),
    "held data": (("poison", "{data}/images", "--target", "class0", "--out", "{root}/empty"), "exists already"),
    "no such target": (
        ("poison", "{data}/images", "--target", "x", "--out", "{root}/out"),
        "no class 'x'; the classes are class0, class1, class2",
    ),
    "position": (
        ("poison", "{data}/images", "--target", "class0", "--position", "3", "--out", "{root}/out"),
        "ROW,COLUMN",
    ),
    "optimised position": ((*OPTIMISE, "--position", "3,4"), "leave one of them out"),
    "pixels without a choice": ((*POISON, "--pixels", "2"), "add --optimise MODEL"),
    "no surrogate": ((*POISON, "--optimise", "{root}/nothing.safetensors"), "is no file"),
    "quality out of reach": ((*OPTIMISE, "--psnr", "90"), "loosen the bounds"),
    "no findings": (("clean", "digits", "--findings", "{root}/empty", "--out", "{root}/out"), "no whole findings"),
    "attack without test": (
        ("train", "{data}/images", "--out", "{root}/out/m.safetensors", "--attack", "{root}/attack.json"),
        "add --test DATA",
    ),
    "no attack": (
        ("train", "{data}/images", "--out", "{root}/out/m.safetensors", "--attack", "{root}/a.json"),
        "describes no attack",
    ),
    "wrong suffix": (("train", "{data}/images", "--out", "{root}/out/m.pt"), "end in .safetensors"),
    "unknown option": ((*SCAN, "--depth", "3"), "No such option"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS, ids=list(BAD_INPUTS))
def test_bad_input_is_an_error_of_one_line_and_nothing_is_written(run, data, tmp_path, case):
    arguments, message = BAD_INPUTS[case]
    make_bad_inputs(tmp_path)
    before = tree(tmp_path)
    code, out, err = run(*(a.format(data=data, root=tmp_path) for a in arguments))
    assert code == 2
    assert not out
    assert re.search(message, err.replace("\n", " "))
    if case != "unknown option":  # typer prints this error itself, in a frame
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50)])
def test_exhausted_memory_is_an_error_of_one_line(run, data, tmp_path, monkeypatch, allocate):
    monkeypatch.setattr("undoor.scanning.collect", lambda *_, **__: allocate())
    code, _, errors = run(
        "scan", data / "images.npz", "--model", data / "linear.safetensors", "--network", "conftest:Linear",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: there is not enough memory for this")
    assert "Traceback" not in errors


def test_broken_images_are_skipped_when_asked(run, data, tmp_path):
    make_bad_inputs(tmp_path)
    code, _, err = run("scan", tmp_path / "broken", "--skip-broken", "--model", data / "linear.safetensors", *NETWORK,
                       "--out", tmp_path / "out", "--exit-zero")  # fmt: skip
    assert code == 0
    assert err.count("note: skipped: 1 of 12 images cannot be decoded: class1/006.png") == 1
    assert len(pd.read_parquet(tmp_path / "out" / "samples.parquet")) == 11
    assert run("clean", tmp_path / "broken", "--findings", tmp_path / "out", "--out", tmp_path / "kept")[0] == 0
    assert "class1/006.png" not in tree(tmp_path / "kept")


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("command", ["poison", "train", "scan"])
def test_a_full_disk_is_an_error_and_nothing_half_written_stays(data, tmp_path, command):
    arguments = {
        "poison": ("--out", tmp_path / "out", "--target", "class0", "--count", 5),
        "train": ("--out", tmp_path / "out" / "m.safetensors", "--epochs", 2),
        "scan": ("--out", tmp_path / "out", "--model", data / "linear.safetensors", *NETWORK),
    }[command]
    before = tree(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "undoor", command, data / "images.parquet", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        preexec_fn=lambda: limit_file_size(8000),  # PyTorch 2.6 writes a temporary module of 4 kB where it is imported
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(f"error: cannot write {tmp_path}")
    assert "File too large" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [name for name in tree(tmp_path) if name != "out"] == before


def test_a_killed_training_resumes(data, tmp_path):
    out = tmp_path / "m.safetensors"
    command = [sys.executable, "-m", "undoor", "train", str(data / "images.parquet"), "--out", str(out)]
    process = subprocess.Popen([*command, "--epochs", "150"], stderr=subprocess.DEVNULL)
    checkpoint = out.with_suffix(".checkpoint")
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not out.exists()
    done = torch.load(checkpoint, weights_only=True)["epoch"]
    assert 0 < done < 150
    ran = subprocess.run([*command, "--epochs", "150"], capture_output=True, text=True, check=True)
    assert f"epoch {done + 1}/150" in ran.stderr
    assert f"epoch {done}/150" not in ran.stderr
    assert out.exists()
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fast"], "choose quick or paper"),
        (["paper"], "give --data"),
        (["paper", "--data", "nowhere"], "nowhere does not exist"),
        (["quick", "--time-budget", "soon"], "give a time such as 90s, 25m or 3h"),
        (["quick", "--time-budget", "-3m"], "give a time such as"),
        (["quick", "--seeds", "0,x"], "give whole numbers"),
        (["quick", "--cells", "none"], "no cell is called"),
        (["quick", "--preset", "slow"], "no preset"),
        (["quick", "--engine", "dask"], "choose local, processes, ray"),
        (["quick", "--gpus", "0.5"], "0.5 GPUs an item cannot be had on local"),
    ],
)
def test_bench_refuses_bad_options(run, tmp_path, options, message):
    code, _, errors = run("bench", *options, "--out", tmp_path / "bench")
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert message in errors
    assert not (tmp_path / "bench").exists()


def test_two_cells_of_the_quick_suite(run, tmp_path):
    """Cluster Impurity finds the planted images; a stopped run continues."""
    out = tmp_path / "bench"
    options = ["bench", "quick", "--out", out, "--stages", "victims,findings,examinations", "--cells", "*-0.35-s0"]
    code, printed, _ = run(*options, "--time-budget", "0.001s")
    assert (code, "0 of 2 cells done; give the same command again" in printed) == (0, True)
    code, printed, progress = run(*options)
    assert (code, "2 of 2 cells done" in printed) == (0, True)
    assert "single-source-0.35-s0: victim" in progress
    rows = pd.read_parquet(out / "cells.parquet").set_index(["scenario", "defense"])
    for scenario in ("single-source", "multiple-source"):
        found = rows.loc[scenario, "CI"]
        assert found["attack_success_rate"] >= 0.9
        assert found["tpr"] >= 0.95
        assert found["fpr_all_classes"] <= 0.005
        assert rows.loc[scenario, "perfect removal"]["tpr"] == 1
        assert rows.loc[scenario, "random removal"]["tpr"] < 0.3
    assert (out / "README.md").exists()


def test_inspect_writes_the_perturbations_of_all_class_pairs(run, data, tmp_path):
    out = tmp_path / "inspection"
    arguments = ("inspect", data / "victim.safetensors", "--data", data / "images.parquet", "--images", "5")
    code, printed, _ = run(*arguments, "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert code == {"clean": 0, "backdoored": 1}[summary["verdict"]]
    assert printed.startswith(summary["verdict"])
    assert "p by rule A" in printed
    assert len(pd.read_parquet(out / "pairs.parquet")) == 6
    assert len(list(out.glob("perturbation-*.png"))) == len(summary["sources"])
    assert run(*arguments, "--out", out)[0] == 2
    assert run(*arguments, "--out", out, "--overwrite", "--exit-zero")[0] == 0
    code, _, errors = run(*arguments, "--out", tmp_path / "other", "--rule", "C")
    assert (code, errors.count("\n")) == (2, 1)
    assert "choose A or B" in errors


def test_clean_leaves_out_the_images_of_a_list(run, data, tmp_path):
    options = ("--model", data / "linear.safetensors", *NETWORK, "--exit-zero", "--quiet")
    run("scan", data / "images", *options, "--out", tmp_path / "found")
    names = sorted(path.relative_to(data / "images").as_posix() for path in (data / "images").rglob("*.png"))
    (tmp_path / "drop.txt").write_text(f"{names[3]}\n\n{names[40]}\n", encoding="utf-8")
    arguments = ("clean", data / "images", "--findings", tmp_path / "found")
    code, out, _ = run(*arguments, "--drop", tmp_path / "drop.txt", "--out", tmp_path / "kept")
    assert code == 0
    assert f"kept {len(names) - 2} of {len(names)} images" in out
    kept = sorted(path.relative_to(tmp_path / "kept").as_posix() for path in (tmp_path / "kept").rglob("*.png"))
    assert kept == [name for name in names if name not in (names[3], names[40])]
    (tmp_path / "drop.txt").write_text("elsewhere.png\n", encoding="utf-8")
    code, _, err = run(*arguments, "--drop", tmp_path / "drop.txt", "--out", tmp_path / "other")
    assert code == 2
    assert "names 'elsewhere.png', which was not scanned" in err
    assert not (tmp_path / "other").exists()
