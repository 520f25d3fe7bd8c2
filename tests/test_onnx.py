"""Networks in ONNX files give the features and logits of the exported network, and hostile files are refused.

They are compared with the PyTorch networks and with ONNX Runtime itself. Hostile graphs are built by hand.
"""

import copy
import pickle
import sys
import warnings
from contextlib import suppress

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from conftest import Linear, make_dataset
from helpers.command_line import data, run  # noqa: F401 - fixtures
from helpers.foreign_models import TorchvisionResNet, vit
from undoor.engine import Engine
from undoor.errors import UndoorError
from undoor.evidence.collect import collect
from undoor.networks.architectures import build_network
from undoor.networks.classifier import Classifier
from undoor.networks.weights import load_model

FREE = ["n", 1, 12, 12]


class LogitsOf(nn.Module):
    """Returns the logits of a model of ``transformers`` alone, as is needed for an export."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


NETWORKS = {
    "small-cnn": (lambda: build_network("small-cnn", (1, 12, 12), 3), (1, 12, 12), "1.classify"),
    "torchvision ResNet": (TorchvisionResNet, (3, 32, 32), "fc"),
    "transformers ViT": (lambda: LogitsOf(vit()), (3, 32, 32), "model.classifier"),
}


def export(model, shape, path, *, external_data=False, batch=None, former=False):
    """Export a network for ``batch`` images at a time, or for any number, with PyTorch's present or former exporter."""
    images = torch.rand(batch or 2, *shape)
    # The present exporter of PyTorch 2.6 fails on a batch normalisation in evaluation mode.
    if former or (torch.__version__ < "2.7" and any(isinstance(part, nn.BatchNorm2d) for part in model.modules())):
        axes = {"images": {0: "n"}} if batch is None else None
        options = {"dynamo": False, "input_names": ["images"], "dynamic_axes": axes}
    else:
        sizes = ({0: torch.export.Dim("n")},) if batch is None else None
        options = {"dynamo": True, "external_data": external_data, "dynamic_shapes": sizes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporters
        torch.onnx.export(model.eval(), (images,), path, verbose=False, **options)


def array(name, values, kind=np.float32):
    return numpy_helper.from_array(np.asarray(values, kind), name)


def graph(nodes, constants=(), shape=FREE, kind=TensorProto.FLOAT, outputs=("y",), opset=18, **fields):
    """Return a model whose input is x; nodes are (kind, inputs, output, attributes)."""
    parts = [helper.make_node(op, inputs, [output], **dict(*rest)) for op, inputs, output, *rest in nodes]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k"]) for name in outputs]
    body = helper.make_graph(parts, "graph", inputs, results, list(constants))
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **fields)


def saved(model, folder):
    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    return path


GENERATOR = np.random.default_rng(0)
WEIGHT, BIAS = GENERATOR.normal(size=(144, 3)).astype(np.float32), GENERATOR.normal(size=3).astype(np.float32)
FLAT = ("Flatten", ["x"], "f")
HEAD = [FLAT, ("MatMul", ["f", "w"], "y")]
PLAIN = [array("w", WEIGHT)]


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize(("name", "batch"), [*((name, None) for name in NETWORKS), ("small-cnn", 2)])
def test_features_and_logits_are_those_of_the_network_that_was_exported(name, batch, former, tmp_path):
    build, shape, last = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    export(model, shape, tmp_path / "m.onnx", batch=batch, former=former)
    images = torch.rand(5, *shape)
    network, names = load_model(tmp_path / "m.onnx")
    assert names is None
    found = Classifier(network).features_and_logits(images)
    expected = Classifier(model, layer=last).features_and_logits(images)
    for found_values, expected_values in zip(found, expected, strict=True):
        assert torch.allclose(found_values, expected_values, atol=1e-5)

    # Body and head are the whole graph.
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    pairs = [images[rows].numpy() for rows in ([0, 1], [2, 3], [4, 4])]
    whole = np.concatenate([session.run(None, {session.get_inputs()[0].name: pair})[0] for pair in pairs])[:5]
    assert np.allclose(found[1].numpy(), whole, atol=1e-5)


def test_the_weights_beside_a_file_are_never_read(tmp_path):
    """By default, PyTorch writes the weights into a file beside the network."""
    export(Linear(), (1, 12, 12), tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "m.onnx.data").is_file()
    with pytest.raises(UndoorError, match=r"names other files.*external_data=False"):
        load_model(tmp_path / "m.onnx")


LAYERS = {
    "Gemm": ([FLAT, ("Gemm", ["f", "w", "b"], "y")], [*PLAIN, array("b", BIAS)], BIAS),
    "transposed": ([FLAT, ("Gemm", ["f", "w"], "y", {"transB": 1})], [array("w", WEIGHT.T)], 0),
    "scaled": (
        [FLAT, ("Gemm", ["f", "w", "b"], "y", {"alpha": 0.5, "beta": 3.0})],
        [array("w", 2 * WEIGHT), array("b", BIAS / 3)],
        BIAS,
    ),
    "MatMul": (HEAD, PLAIN, 0),
    "bias behind": ([FLAT, ("MatMul", ["f", "w"], "m"), ("Add", ["m", "b"], "y")], [*PLAIN, array("b", BIAS)], BIAS),
    "bias before": ([FLAT, ("MatMul", ["f", "w"], "m"), ("Add", ["b", "m"], "y")], [*PLAIN, array("b", [BIAS])], BIAS),
    "one bias": ([FLAT, ("MatMul", ["f", "w"], "m"), ("Add", ["m", "b"], "y")], [*PLAIN, array("b", 4.0)], 4.0),
}


@pytest.mark.parametrize("case", LAYERS)
def test_every_form_of_a_last_layer_is_read(case, tmp_path):
    nodes, constants, bias = LAYERS[case]
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    features, logits = Classifier(load_model(saved(graph(nodes, constants), tmp_path))[0]).features_and_logits(images)
    assert torch.equal(features, images.flatten(1))
    assert np.allclose(logits.numpy(), images.flatten(1).numpy() @ WEIGHT + bias, atol=1e-5)


def test_weights_that_are_listed_as_inputs_are_no_inputs(tmp_path):
    model = graph(HEAD, PLAIN)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [144, 3]))
    assert load_model(saved(model, tmp_path))[0].head.in_features == 144


def test_a_network_can_be_copied_and_its_fingerprint_depends_on_its_body(tmp_path):
    before = torch.random.get_rng_state()
    network = load_model(saved(graph(HEAD, PLAIN), tmp_path))[0]
    assert torch.equal(torch.random.get_rng_state(), before)
    images = torch.rand(3, 1, 12, 12)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images), network(images))
        assert Classifier(other).fingerprint() == Classifier(network).fingerprint()
    changed = graph([FLAT, ("Relu", ["f"], "r"), ("MatMul", ["r", "w"], "y")], PLAIN)
    assert Classifier(load_model(saved(changed, tmp_path))[0]).fingerprint() != Classifier(network).fingerprint()


def test_evidence_of_processes_is_that_of_one(tmp_path):
    classifier, photos = Classifier(load_model(saved(graph(HEAD, PLAIN), tmp_path))[0], device="cpu"), make_dataset(8)
    local, processes = (collect(classifier, photos, engine=Engine(kind, 2)) for kind in ("local", "processes"))
    assert np.allclose(local.plain.logits, processes.plain.logits, atol=1e-4)


def refused_models():
    """Return models that are refused, and a part of the error message for each."""
    outside = array("w", WEIGHT)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../../etc/passwd")
    constant = ("Constant", [], "w", {"value": outside})
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k"])])
    foreign = graph(HEAD, PLAIN)
    foreign.graph.node[0].domain = "com.\nexample"  # found by fuzzing: the file may choose any text as a name
    function = graph(HEAD, PLAIN)
    function.functions.append(helper.make_function("", "Mine", ["a"], ["b"], [], [helper.make_opsetid("", 18)]))
    sparse = graph(HEAD, PLAIN)
    sparse.graph.sparse_initializer.add(dims=[10**12])
    dense = helper.make_sparse_tensor(array("", [1.0]), array("", [0], np.int64), [10**12])
    huge = array("w", [0.0])
    huge.dims[:] = [10**10, 10**3]
    twice = graph([*HEAD, ("Relu", ["y"], "z")], PLAIN, outputs=("y", "z"))
    two = graph([*HEAD], PLAIN)
    two.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    softmax = [FLAT, ("MatMul", ["f", "w"], "m"), ("Softmax", ["m"], "y")]
    unsorted = graph(HEAD[::-1], PLAIN)
    return {
        "weights elsewhere": (graph(HEAD, [outside]), "names other files"),
        "a constant elsewhere": (graph([constant, *HEAD]), "names other files"),
        "a foreign operator": (foreign, r"calls 'Flatten' of the domain 'com.\\nexample'"),
        "a loop": (graph([("Loop\n", ["", ""], "y", {"body": inner})]), "a loop or a branch"),
        "a branch": (
            graph([("If", ["x"], "y", {"then_branch": inner, "else_branch": inner})]), "a loop or a branch",
        ),
        "a function": (function, "holds functions"),
        "sparse weights": (sparse, "sparse weights"),
        "a sparse constant": (graph([("Constant", [], "w", {"sparse_value": dense}), *HEAD]), "sparse weights"),
        "too few bytes": (graph(HEAD, [huge]), "no ONNX file that can be run"),
        "too new": (graph(HEAD, PLAIN, opset=99), "no ONNX file that can be run"),
        "no such operator": (graph([FLAT, ("Mine", ["f"], "y")]), "no ONNX file that can be run"),
        "an unknown input": (graph([("MatMul", ["nothing", "w"], "y")], PLAIN), "no ONNX file that can be run"),
        "out of order": (unsorted, "no ONNX file that can be run"),
        "two outputs": (twice, "1 inputs and 2 outputs"),
        "two inputs": (two, "2 inputs and 1 outputs"),
        "probabilities": (graph(softmax, PLAIN), "ends in Softmax, not in a linear layer"),
        "a weight that is computed": (graph([FLAT, ("MatMul", ["f", "f"], "y")]), "ends in MatMul, not in a linear"),
        "double weights": (
            graph([("Cast", ["x"], "d", {"to": 11}), ("Flatten", ["d"], "f"), HEAD[1]], [array("w", WEIGHT, float)]),
            "with float32 weights",
        ),
        "bytes": (graph(HEAD, PLAIN, kind=TensorProto.UINT8), r"takes uint8 of shape \(any, 1, 12, 12\).*float images"),
        "double": (graph(HEAD, PLAIN, kind=TensorProto.DOUBLE), "takes double of shape"),
        "channels last": (graph(HEAD, PLAIN, shape=["n", 12, 12, 1]), r"shape \(any, 12, 12, 1\).*N, 1 or 3, height"),
        "flat": (graph(HEAD, PLAIN, shape=["n", 144]), "takes float of shape"),
        "no image": (graph(HEAD, PLAIN, shape=[0, 1, 12, 12]), "one image or more"),
        "nothing": (onnx.ModelProto(), "no ONNX file that can be run"),
    }  # fmt: skip


REFUSED = refused_models()


@pytest.mark.parametrize("case", REFUSED)
def test_graphs_that_are_not_run_are_refused_in_one_line(case, tmp_path):
    model, message = REFUSED[case]
    with pytest.raises(UndoorError, match=message) as raised:
        load_model(saved(model, tmp_path))
    assert "\n" not in str(raised.value)


def test_broken_files_are_reported_in_one_line(tmp_path):
    whole = graph(HEAD, PLAIN).SerializeToString()
    generator = np.random.default_rng(0)
    positions, bits = generator.integers(0, 60, 80).tolist(), generator.integers(0, 8, 80).tolist()
    broken = [whole[:length] for length in range(0, len(whole), 97)]
    broken += [
        whole[:k] + bytes([whole[k] ^ 1 << bit]) + whole[k + 1 :] for k, bit in zip(positions, bits, strict=True)
    ]
    loaded = 0
    for content in broken:
        (tmp_path / "m.onnx").write_bytes(content)
        with suppress(UndoorError):
            load_model(tmp_path / "m.onnx")
            loaded += 1
    assert loaded < len(broken) / 2  # some of the bits belong to names, which may change


@pytest.mark.parametrize("op", ["Expand", "ConstantOfShape"])
def test_a_small_file_does_not_fill_the_memory(op, tmp_path):
    inputs = ["r", "s"] if op == "Expand" else ["s"]
    nodes = [
        ("ReduceSum", ["x"], "r"), (op, inputs, "c"), ("ReduceSum", ["c"], "t"), FLAT, ("Mul", ["f", "t"], "g"),
        ("MatMul", ["g", "w"], "y"),
    ]  # fmt: skip
    model = graph(nodes, [*PLAIN, array("s", [1, 1, 1, 3 * 10**9], np.int64)])
    with pytest.raises(UndoorError, match="needs more than 2 GiB for 2 images; lower --batch-size"):
        Classifier(load_model(saved(model, tmp_path))[0]).features_and_logits(torch.rand(2, 1, 12, 12))


def test_images_of_another_size_are_reported(tmp_path):
    classifier = Classifier(load_model(saved(graph(HEAD, PLAIN), tmp_path))[0])
    with pytest.raises(UndoorError, match=r"fails on images of shape \(2, 1, 8, 8\).*check --image-size"):
        classifier.features_and_logits(torch.rand(2, 1, 8, 8))


def test_only_the_last_layer_can_be_named(tmp_path):
    network = load_model(saved(graph(HEAD, PLAIN), tmp_path))[0]
    assert Classifier(network, layer="head").features_and_logits(torch.rand(2, 1, 12, 12))[0].shape == (2, 144)
    with pytest.raises(UndoorError, match="no layer 'f'; its linear layers: 'head'"):
        Classifier(network, layer="f")


def test_gradients_are_refused(tmp_path):
    classifier = Classifier(load_model(saved(graph(HEAD, PLAIN), tmp_path))[0])
    images = torch.rand(2, 1, 12, 12)
    with classifier.frozen() as forward:
        assert forward(images).shape == (2, 3)
        with pytest.raises(UndoorError, match="no gradients"):
            forward(images.requires_grad_())
    with pytest.raises(UndoorError, match="no gradients"):
        classifier.model.train()(torch.rand(2, 1, 12, 12))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_packages_the_extra_is_named(missing, tmp_path, monkeypatch):
    from undoor.networks import onnx as onnx_network

    monkeypatch.setitem(sys.modules, missing, None)
    for found in (onnx_network._library, onnx_network._runtime):
        found.cache_clear()
    with pytest.raises(UndoorError, match=rf"need the package {missing}; .*pip install 'undoor\[onnx\]'"):
        load_model(saved(graph(HEAD, PLAIN), tmp_path))


@pytest.fixture
def victim(data):  # noqa: F811
    """An ONNX file of the network in ``data``."""
    path = data / "victim.onnx"
    if not path.exists():
        export(load_model(data / "victim.safetensors")[0], (1, 12, 12), path)
    return path


def test_a_scan_sees_the_decisions_of_the_pytorch_network(data, run, victim, tmp_path):  # noqa: F811
    samples = []
    for path in (victim, victim.with_suffix(".safetensors")):
        out = tmp_path / path.suffix
        code, _, err = run("scan", data / "images", "--model", path, "--filter", "average:12", "--out", out)
        assert code in (0, 1), err
        samples.append(pd.read_parquet(out / "samples.parquet", columns=["id", "label", "predicted", "filtered"]))
    pd.testing.assert_frame_equal(*samples)
    assert (samples[0]["predicted"] != samples[0]["filtered"]).any()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["inspect", "--images", "10"], "no gradients"),
        (["prune"], "no convolution"),
        (["guard", "fit"], "an ONNX network has 'head' alone"),
        (["scan", "--network", "small-cnn"], "leave --network small-cnn out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_that_need_more_than_an_onnx_network_fail_in_one_line(command, message, data, run, victim, tmp_path):  # noqa: F811
    photos = data / "images"
    inputs = [photos, "--model", victim] if command[0] == "scan" else [victim, "--data", photos]
    code, _, err = run(*command, *inputs, "--out", tmp_path / "out.safetensors")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in err
    assert not [*tmp_path.iterdir()]


def test_a_guard_watches_the_last_layer(data, run, victim, tmp_path):  # noqa: F811
    guard = tmp_path / "guard.safetensors"
    code, _, err = run("guard", "fit", victim, "--data", data / "images", "--layer", "head", "--out", guard)
    assert code == 0, err
    code, _, err = run("guard", "check", victim, "--guard", guard, "--data", data / "images", "--exit-zero")
    assert code == 0, err
