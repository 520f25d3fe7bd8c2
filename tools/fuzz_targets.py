"""The readers and loaders that ``tools.fuzz`` tries, each with the first inputs of its corpus."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save
from torch import nn

from undoor.attacks import Attack, poison, read_attack, write_attack
from undoor.attacks.pixels import Pixels
from undoor.data.dataset import Dataset, Truth, row_ids
from undoor.data.readers import read
from undoor.data.readers.images import decode_dataset
from undoor.data.readers.options import ReadOptions
from undoor.data.readers.parquet import write_parquet
from undoor.defenses.test_time import Ada, Guard, classifier_layer
from undoor.findings.findings import Findings
from undoor.findings.provenance import Provenance
from undoor.findings.reading import read_findings, read_ids
from undoor.findings.tables import CLUSTER_COLUMNS, SAMPLE_COLUMNS, curve_table
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier
from undoor.networks.weights import Architecture, load_model, save_model
from undoor.safe.images import encode_png


@dataclass(frozen=True)
class Target:
    """A reader that is fuzzed.

    Args:
        use: reads an input; its second argument is a folder for the file.
        seeds: returns the first inputs of the corpus; its argument is an empty folder for temporary files.

    """

    use: Callable[[bytes, Path], object]
    seeds: Callable[[Path], list[bytes]]


def network() -> nn.Module:
    """Return the network to which the checkpoints belong."""
    return build_network("small-cnn", (1, 12, 12), 3)


def images() -> Dataset:
    """Return four small images of two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 12, 12), dtype=np.uint8)
    return Dataset(pixels, np.array([0, 0, 1, 1]), ("a", "b"), row_ids(4))


def read_as(name: str) -> Callable[[bytes, Path], object]:
    """Return a function that reads a data set from a file with this name."""

    def use(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        read(folder / name, skip_broken=True)

    return use


def read_image(content: bytes, _: Path) -> None:
    decode_dataset(lambda _: content, [0], ["a"], ["0"], ReadOptions())


def image_seeds(_: Path) -> list[bytes]:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    encoded = []
    for image_format, mode in (
        ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P"), ("BMP", "RGB"),
        ("TIFF", "RGB"), ("TIFF", "F"), ("WEBP", "RGB"), ("PPM", "RGB"), ("TGA", "RGB"), ("ICO", "RGBA"), ("PCX", "L"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        grey.convert(mode).save(buffer, image_format)
        encoded.append(buffer.getvalue())
    return encoded


def parquet_seeds(folder: Path) -> list[bytes]:
    data = images()
    write_parquet(data, folder / "plain.parquet")
    write_parquet(replace(data, truth=Truth(np.zeros(4, bool), data.labels)), folder / "truth.parquet")
    text = pd.DataFrame({"image": [encode_png(image) for image in data.images], "label": ["a", "b", "a", "b"]})
    text.to_parquet(folder / "text.parquet", compression=None)
    return [file.read_bytes() for file in sorted(folder.glob("*.parquet"))]


def npz_seeds(folder: Path) -> list[bytes]:
    data = images()
    plain = {"images": data.images, "labels": data.labels}
    np.savez(folder / "a.npz", **plain)
    np.savez_compressed(folder / "b.npz", **plain, class_names=np.array(["a", "b"]), ids=data.ids)
    return [file.read_bytes() for file in sorted(folder.glob("*.npz"))]


def cifar_seeds(_: Path) -> list[bytes]:
    pixels = np.zeros((2, 3072), np.uint8)
    content = {b"data": pixels, b"labels": [0, 1], b"filenames": [b"a", b"b"]}
    fine = {"data": pixels, "fine_labels": [3, 4]}
    return [pickle.dumps(content, 2), pickle.dumps(content, 4), pickle.dumps(fine)]


def load_as(name: str, network: str | None = None) -> Callable[[bytes, Path], object]:
    """Return a function that loads a network from a file with this name and applies it to two images."""

    def use(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        model, _ = load_model(folder / name, network)
        Classifier(model).features_and_logits(torch.rand(2, 1, 12, 12))

    return use


def safetensors_seeds(folder: Path) -> list[bytes]:
    architecture = Architecture("small-cnn", (1, 12, 12), ("a", "b", "c"), {"name": "fast"})
    save_model(network(), architecture, folder / "m.safetensors")
    metadata = {"undoor": json.dumps(architecture.__dict__)}
    return [(folder / "m.safetensors").read_bytes(), save({}, metadata=metadata), save({})]


def checkpoint_seeds(folder: Path) -> list[bytes]:
    small = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2, dtype=torch.float16)}
    torch.save(network().state_dict(), folder / "0.pt")
    torch.save(small, folder / "1.pt")
    torch.save({"state_dict": small, "epoch": 3}, folder / "2.pt", _use_new_zipfile_serialization=False)
    return [file.read_bytes() for file in sorted(folder.glob("*.pt"))]


def onnx_seeds(_: Path) -> list[bytes]:
    def model(nodes: list, constants: dict, batch: object) -> bytes:
        inputs, outputs = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", [batch, 1, 12, 12]), ("y", [batch, 3]))
        )
        arrays = [numpy_helper.from_array(values, name) for name, values in constants.items()]
        graph = helper.make_graph(nodes, "g", [inputs], [outputs], arrays)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()

    weight, node = np.ones((3, 2), np.float32), helper.make_node
    kernel, bias = np.ones((2, 1, 3, 3), np.float32), np.ones(3, np.float32)
    body = [
        node("Conv", ["x", "k"], ["c"], strides=[2, 2]), node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]), node("Flatten", ["p"], ["f"]),
    ]  # fmt: skip
    gemm = [*body, node("Gemm", ["f", "w", "b"], ["y"], transB=1)]
    matmul = [*body, node("MatMul", ["f", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
    constants = {"k": kernel, "b": bias}
    return [model(gemm, {**constants, "w": weight}, "n"), model(matmul, {**constants, "w": weight.T.copy()}, 2)]


def use_attack(content: bytes, folder: Path) -> None:
    (folder / "attack.json").write_bytes(content)
    poison(images(), read_attack(folder / "attack.json"))


def attack_seeds(folder: Path) -> list[bytes]:
    one_pixel = Attack.one_pixel(images(), target="b", count=1, size=0.5)
    two_pixels = Attack(Pixels(((1, 2, 0, 0.5), (3, 3, 0, -0.25))), ("a",), "b", 2, False, 3)
    for number, planned in enumerate((one_pixel, two_pixels)):
        write_attack(planned, folder / f"{number}.json")
    return [file.read_bytes() for file in sorted(folder.glob("*.json"))]


def write_findings(folder: Path) -> None:
    """Write findings of four images."""
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


def findings_file(name: str) -> Target:
    """Return the target that mutates one file of findings; the other files are not changed."""

    def use(content: bytes, folder: Path) -> None:
        if not (folder / "curves.parquet").exists():
            write_findings(folder)
        (folder / name).write_bytes(content)
        read_ids(folder)
        read_findings(folder).summary()

    def seeds(folder: Path) -> list[bytes]:
        write_findings(folder)
        return [(folder / name).read_bytes()]

    return Target(use, seeds)


def guarded_network() -> Classifier:
    """Return the network of the guards; it decides for each of three classes about equally often."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(4, 3)
    last.bias.data = -last.weight.sum(1) / 2
    return Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), last), device="cpu")


def use_guard(content: bytes, folder: Path) -> None:
    (folder / "g.safetensors").write_bytes(content)
    classifier_layer(folder / "g.safetensors")
    Guard.read(folder / "g.safetensors", guarded_network()).check(images().images)


def guard_seeds(folder: Path) -> list[bytes]:
    classifier = guarded_network()
    pixels = np.random.default_rng(1).integers(0, 256, (300, 1, 12, 12), dtype=np.uint8)
    clean = Dataset(pixels, classifier.decide(pixels), ("a", "b", "c"), row_ids(300))
    Ada(layers=("2",), false_positive_rate=0.2).fit(classifier, clean).write(folder / "g.safetensors")
    return [(folder / "g.safetensors").read_bytes()]


TARGETS = {
    "image": Target(read_image, image_seeds),
    "parquet": Target(read_as("t.parquet"), parquet_seeds),
    "npz": Target(read_as("a.npz"), npz_seeds),
    "cifar-pickle": Target(read_as("data_batch_1"), cifar_seeds),
    "cifar-binary": Target(read_as("data_batch_1.bin"), lambda _: [bytes(2 * 3073), bytes([1, 2, 3])]),
    "safetensors": Target(load_as("m.safetensors"), safetensors_seeds),
    "checkpoint": Target(load_as("m.pt", f"{__name__}:network"), checkpoint_seeds),
    "onnx": Target(load_as("m.onnx"), onnx_seeds),
    "attack": Target(use_attack, attack_seeds),
    "summary": findings_file("summary.json"),
    "samples": findings_file("samples.parquet"),
    "guard": Target(use_guard, guard_seeds),
}
