"""Read mutated files with every reader and loader: each must end in a result or in an UndoorError.

``make fuzz`` installs atheris, libFuzzer for Python, into build/fuzz and runs every target for FUZZ_SECONDS. Inputs
that end in anything else are kept in build/fuzz/found, named by target and fault; the corpus grows in
build/fuzz/corpus. ``fuzz.py TARGET FILE`` reads one input again and shows where it fails.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "fuzz"
FOUND, CORPUS = WORK / "found", WORK / "corpus"
LIMITS = ("-rss_limit_mb=3072", "-malloc_limit_mb=2048", "-timeout=20", "-max_len=200000", "-print_final_stats=1")
INSTRUMENTED = [
    "undoor",
    "PIL",
    "zipfile",
    "pickle",
    "pickletools",
    "json",
    "numpy.lib.format",
    "numpy.lib._format_impl",
]


@dataclass(frozen=True)
class Target:
    """What is read, and what the corpus begins with.

    Args:
        use: is given the input and a folder to put it into.
        seeds: of an empty folder, the first inputs.

    """

    use: Callable[[bytes, Path], object]
    seeds: Callable[[Path], list[bytes]]


def network() -> object:
    """Return the network that checkpoints and guards belong to."""
    from undoor.networks.architectures import build_network

    return build_network("small-cnn", (1, 12, 12), 3)


def images() -> object:
    """Return four small images of two classes."""
    import numpy as np

    from undoor.data.dataset import Dataset, row_ids

    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 12, 12), dtype=np.uint8)
    return Dataset(pixels, np.array([0, 0, 1, 1]), ("a", "b"), row_ids(4))


def reads(name: str) -> Callable[[bytes, Path], object]:
    """Return what reads a data set from a file of this name."""

    def use(content: bytes, folder: Path) -> None:
        from undoor.data.readers import read

        (folder / name).write_bytes(content)
        read(folder / name, skip_broken=True)

    return use


def decode(content: bytes, _: Path) -> None:
    from undoor.data.readers.images import decode_dataset
    from undoor.data.readers.options import ReadOptions

    decode_dataset(lambda _: content, [0], ["a"], ["0"], ReadOptions())


def pictures(_: Path) -> list[bytes]:
    import io

    import numpy as np
    from PIL import Image

    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    made = []
    for form, mode in (
        ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"),
        ("TIFF", "RGB"), ("TIFF", "F"), ("WEBP", "RGB"), ("PPM", "RGB"), ("TGA", "RGB"), ("ICO", "RGBA"), ("PCX", "L"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        grey.convert(mode).save(buffer, form)
        made.append(buffer.getvalue())
    return made


def tables(folder: Path) -> list[bytes]:
    from dataclasses import replace

    import numpy as np
    import pandas as pd

    from undoor.data.dataset import Truth
    from undoor.data.readers.parquet import write_parquet
    from undoor.safe.images import encode_png

    data = images()
    write_parquet(data, folder / "plain.parquet")
    write_parquet(replace(data, truth=Truth(np.zeros(4, bool), data.labels)), folder / "truth.parquet")
    text = pd.DataFrame({"image": [encode_png(one) for one in data.images], "label": ["a", "b", "a", "b"]})
    text.to_parquet(folder / "text.parquet", compression=None)
    return [file.read_bytes() for file in sorted(folder.glob("*.parquet"))]


def archives(folder: Path) -> list[bytes]:
    import numpy as np

    data = images()
    plain = {"images": data.images, "labels": data.labels}
    np.savez(folder / "a.npz", **plain)
    np.savez_compressed(folder / "b.npz", **plain, class_names=np.array(["a", "b"]), ids=data.ids)
    return [file.read_bytes() for file in sorted(folder.glob("*.npz"))]


def batches(_: Path) -> list[bytes]:
    import pickle

    import numpy as np

    pixels = np.zeros((2, 3072), np.uint8)
    content = {b"data": pixels, b"labels": [0, 1], b"filenames": [b"a", b"b"]}
    return [pickle.dumps(content, protocol) for protocol in (2, 4)] + [
        pickle.dumps({"data": pixels, "fine_labels": [3, 4]})
    ]


def load(name: str, network: str | None = None) -> Callable[[bytes, Path], object]:
    """Return what loads a network from a file of this name and looks at two images with it."""

    def use(content: bytes, folder: Path) -> None:
        import torch

        from undoor.networks.classifier import Classifier
        from undoor.networks.weights import load_model

        (folder / name).write_bytes(content)
        model, _ = load_model(folder / name, network)
        Classifier(model).features_and_logits(torch.rand(2, 1, 12, 12))

    return use


def weights(folder: Path) -> list[bytes]:
    from safetensors.torch import save

    from undoor.networks.weights import Architecture, save_model

    architecture = Architecture("small-cnn", (1, 12, 12), ("a", "b", "c"), {"name": "fast"})
    save_model(network(), architecture, folder / "m.safetensors")
    described = {"undoor": json.dumps(architecture.__dict__)}
    return [(folder / "m.safetensors").read_bytes(), save({}, metadata=described), save({})]


def checkpoints(folder: Path) -> list[bytes]:
    import torch

    small = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2, dtype=torch.float16)}
    torch.save(network().state_dict(), folder / "0.pt")
    torch.save(small, folder / "1.pt")
    torch.save({"state_dict": small, "epoch": 3}, folder / "2.pt", _use_new_zipfile_serialization=False)
    return [file.read_bytes() for file in sorted(folder.glob("*.pt"))]


def graphs(_: Path) -> list[bytes]:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    def model(nodes: list, constants: dict, batch: object) -> bytes:
        given, returned = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", [batch, 1, 12, 12]), ("y", [batch, 3]))
        )
        arrays = [numpy_helper.from_array(values, name) for name, values in constants.items()]
        graph = helper.make_graph(nodes, "g", [given], [returned], arrays)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()

    weight, node = np.ones((3, 2), np.float32), helper.make_node
    kernel, bias = np.ones((2, 1, 3, 3), np.float32), np.ones(3, np.float32)
    body = [
        node("Conv", ["x", "k"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]), node("Flatten", ["p"], ["f"]),
    ]  # fmt: skip
    gemm = [*body, node("Gemm", ["f", "w", "b"], ["y"], transB=1)]
    added = [*body, node("MatMul", ["f", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
    constants = {"k": kernel, "b": bias}
    return [model(gemm, {**constants, "w": weight}, "n"), model(added, {**constants, "w": weight.T.copy()}, 2)]


def attack(content: bytes, folder: Path) -> None:
    from undoor.attacks import poison, read_attack

    (folder / "attack.json").write_bytes(content)
    poison(images(), read_attack(folder / "attack.json"))


def attacks(folder: Path) -> list[bytes]:
    from undoor.attacks import Attack, write_attack
    from undoor.attacks.pixels import Pixels

    one = Attack.one_pixel(images(), target="b", count=1, size=0.5)
    for number, each in enumerate((one, Attack(Pixels(((1, 2, 0, 0.5), (3, 3, 0, -0.25))), ("a",), "b", 2, False, 3))):
        write_attack(each, folder / f"{number}.json")
    return [file.read_bytes() for file in sorted(folder.glob("*.json"))]


def findings(folder: Path) -> None:
    """Write findings of four images."""
    import pandas as pd

    from undoor.findings.findings import Findings
    from undoor.findings.provenance import Provenance
    from undoor.findings.tables import CLUSTER_COLUMNS, SAMPLE_COLUMNS, curve_table

    rows = [(str(k), k // 2, k // 2, 0, k / 4, k == 3) for k in range(4)]
    clusters = [(k, "ab"[k], 0, 1, 2, 2, 0.5, 0.7, [1, 1], bool(k)) for k in range(2)]
    Findings(
        provenance=Provenance(defense="ci", method_version=1, settings={"seed": 0}),
        samples=pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)),
        clusters=pd.DataFrame(clusters, columns=list(CLUSTER_COLUMNS)),
        class_names=("a", "b"),
        threshold=0.5,
        curves=curve_table([(0, 1, 2, 1, 3.5)]),
        image_filter="average:2",
    ).write(folder, "<p>", overwrite=True)


def found(name: str) -> Target:
    """Return the target whose input is one file of findings, while the others are whole."""

    def use(content: bytes, folder: Path) -> None:
        from undoor.findings.reading import read_findings, read_ids

        if not (folder / "curves.parquet").exists():
            findings(folder)
        (folder / name).write_bytes(content)
        read_ids(folder)
        read_findings(folder).summary()

    def seeds(folder: Path) -> list[bytes]:
        findings(folder)
        return [(folder / name).read_bytes()]

    return Target(use, seeds)


def guarded() -> object:
    """Return the network that the guards watch: it decides between three classes about as often."""
    import torch
    from torch import nn

    from undoor.networks.classifier import Classifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(4, 3)
    last.bias.data = -last.weight.sum(1) / 2
    return Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), last), device="cpu")


def guard(content: bytes, folder: Path) -> None:
    from undoor.defenses.test_time import Guard, classifier_layer

    (folder / "g.safetensors").write_bytes(content)
    classifier_layer(folder / "g.safetensors")
    Guard.read(folder / "g.safetensors", guarded()).check(images().images)


def guards(folder: Path) -> list[bytes]:
    import numpy as np

    from undoor.data.dataset import Dataset, row_ids
    from undoor.defenses.test_time import Ada

    classifier = guarded()
    pixels = np.random.default_rng(1).integers(0, 256, (300, 1, 12, 12), dtype=np.uint8)
    clean = Dataset(pixels, classifier.decide(pixels), ("a", "b", "c"), row_ids(300))
    Ada(layers=("2",), false_positive_rate=0.2).fit(classifier, clean).write(folder / "g.safetensors")
    return [(folder / "g.safetensors").read_bytes()]


TARGETS = {
    "image": Target(decode, pictures),
    "parquet": Target(reads("t.parquet"), tables),
    "npz": Target(reads("a.npz"), archives),
    "cifar-pickle": Target(reads("data_batch_1"), batches),
    "cifar-binary": Target(reads("data_batch_1.bin"), lambda _: [bytes(2 * 3073), bytes([1, 2, 3])]),
    "safetensors": Target(load("m.safetensors"), weights),
    "checkpoint": Target(load("m.pt", f"{__name__}:network"), checkpoints),
    "onnx": Target(load("m.onnx"), graphs),
    "attack": Target(attack, attacks),
    "summary": found("summary.json"),
    "samples": found("samples.parquet"),
    "guard": Target(guard, guards),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="by default all, one after another")
    parser.add_argument("file", nargs="?", type=Path, help="read this input and show where it fails")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        fuzz(given.target, given.seconds)
    elif given.file is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[given.target].use(given.file.read_bytes(), Path(folder))
    else:
        names = [given.target] if given.target else list(TARGETS)
        faults = sum(watch(name, given.seconds) for name in names)
        sys.exit(faults > 0)


def watch(name: str, seconds: int) -> int:
    """Fuzz one target in processes of its own, a new one where one died; return the number of faults it has shown."""
    before, executions, deaths = found_of(name), 0, 0
    end = time.monotonic() + seconds
    FOUND.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(WORK), os.environ.get("PYTHONPATH", "")])}
    while (left := round(end - time.monotonic())) > 0:
        command = [sys.executable, __file__, name, "--inside", "--seconds", str(left)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        counted = re.findall(r"stat::number_of_executed_units: +(\d+)", ended.stderr)
        executions += int(counted[-1]) if counted else 0
        if ended.returncode:
            deaths += 1
            (FOUND / f"{name}-death-{deaths}.log").write_text(ended.stderr[-20_000:], encoding="utf-8")
            if not counted:  # it never began
                break
    new = found_of(name) - before
    print(
        f"{name}: {executions} executions, {len(new)} new findings",
        *sorted(p.name for p in new),
        sep="\n  ",
        flush=True,
    )
    return len(new)


def found_of(name: str) -> set[Path]:
    """Return the inputs that a target has failed on; beside each lies what was raised, as text."""
    return {path for path in FOUND.glob(f"{name}-*") if path.suffix != ".txt"}


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        for module in ("defenses.test_time", "readers", "readers.images", "attacks", "findings", "weights"):
            import_module(f"undoor.{module}")
        import_module("PIL.Image").init()
    import torch

    from undoor.errors import UndoorError

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, corpus = TARGETS[name], CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in target.seeds(Path(folder)):
            (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    desk = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)

    def read(content: bytes) -> None:
        try:
            target.use(content, Path(desk))
        except UndoorError as error:
            if "\n" in str(error):
                keep(name, content, error)
        except Exception as error:
            keep(name, content, error)

    options = [f"-max_total_time={seconds}", f"-artifact_prefix={FOUND / name}-", *LIMITS]
    atheris.Setup([sys.argv[0], str(corpus), *options], read)
    atheris.Fuzz()


def keep(name: str, content: bytes, error: Exception) -> None:
    """Keep an input, the first of its kind: a kind is an exception and the last line of undoor that it passed."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if "undoor" in f.filename]
    where = f"{Path(lines[-1].filename).stem}:{lines[-1].lineno}" if lines else "elsewhere"
    kept = FOUND / f"{name}-{type(error).__name__}-{where}"
    if not kept.exists():
        kept.write_bytes(content)
        kept.with_name(f"{kept.name}.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")


if __name__ == "__main__":
    main()
