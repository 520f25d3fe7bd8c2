"""Networks in ONNX files: ONNX Runtime computes the features, and PyTorch the last linear layer.

The penultimate features are then the input of an ``nn.Linear``, as in every other network. Only the nodes of the file
that the features depend on are kept. They are operators of ONNX itself, without loops, branches, functions or weights
in other files.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from undoor.errors import UndoorError, first_line

LARGEST = 2 * 2**30
"""Largest number of bytes of a file. A message of protobuf cannot be larger."""

ROOM = 2 * 2**30
"""Most bytes of memory for a forward pass, besides the weights. Without a limit, a small file could fill the memory."""

STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

EXPORT = "torch.onnx.export(model.eval(), (images,), 'network.onnx', dynamo=True, external_data=False)"


class OnnxNetwork(nn.Module):
    """The network of an ONNX file, for inference only. Its last layer ``head`` is its only layer of PyTorch.

    Args:
        body: a serialised ONNX model from the images to the penultimate features.
        batch: the number of images that the body takes at a time; None if it takes any number.
        head: the layer from the features to the logits.

    """

    def __init__(self, body: bytes, batch: int | None, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self._body = body
        self._batch = batch
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session: a copy of the network makes its own, with as many threads as PyTorch has there."""
        return {**self.__dict__, "_session": None}

    def extra_repr(self) -> str:
        """Return a hash of the body, so that ``str`` of the network tells it from others."""
        return f"body={hashlib.blake2b(self._body, digest_size=16).hexdigest()}"

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) logits of (N, C, H, W) float images, on their device.

        Raises:
            UndoorError: gradients are needed, or the pass needs more than ``ROOM``.
            RuntimeError: the images do not fit the network.

        """
        if torch.is_grad_enabled() and (self.training or images.requires_grad):
            raise UndoorError(
                "a network from an ONNX file has no gradients, which this needs; give the PyTorch network, "
                "its weights in a .safetensors file and --network"
            )
        pixels = images.detach().cpu().contiguous().numpy()
        size = self._batch or len(pixels)
        features = np.concatenate([self._run(pixels[start : start + size]) for start in range(0, len(pixels), size)])
        logits: Tensor = self.head(torch.from_numpy(features).to(images.device))
        return logits

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of a batch. If the body takes more images, the last image is repeated."""
        n = len(pixels)
        if self._batch is not None and n < self._batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self._batch - n, axis=0)])
        session = self.session()
        try:
            features: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: pixels})[0]
        except Exception as error:  # the errors of the runtime have no common base class
            if "vailable memory" in str(error):
                raise UndoorError(
                    f"the network needs more than {ROOM // 2**30} GiB for {len(pixels)} images; lower --batch-size"
                ) from error
            raise RuntimeError(first_line(error)) from error
        return features[:n]

    def session(self) -> Any:
        """Return the session of ONNX Runtime that runs the body on the CPU, with as many threads as PyTorch."""
        if self._session is None:
            runtime = _runtime()
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 4  # errors are raised, so that none is logged
            options.add_session_config_entry("session.use_env_allocators", "1")
            self._session = runtime.InferenceSession(self._body, options, providers=["CPUExecutionProvider"])
        return self._session


def load_onnx(path: Path) -> OnnxNetwork:
    """Return the network in an ``.onnx`` file, in evaluation mode.

    Raises:
        UndoorError: the file is no whole ONNX file; its input is anything but one float32 tensor (N, C, H, W); it does
            not end in a linear layer; it holds what undoor does not run; ``onnx`` or ``onnxruntime`` is missing.

    """
    onnx = _library("onnx")
    if path.stat().st_size > LARGEST:
        raise UndoorError(f"{path} is larger than {LARGEST // 2**30} GiB, which no ONNX file is; give another")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        _require_runnable(model, path)
        onnx.checker.check_model(model)
        network = _split(model, path)
        network.session()
    except UndoorError:
        raise
    except Exception as error:  # the errors of protobuf, the checker and the runtime have no common base class
        raise UndoorError(
            f"{path} is no ONNX file that can be run: {first_line(error)}; export the network again"
        ) from error
    return network.eval()


def _require_runnable(model: Any, path: Path) -> None:
    """Raise ``UndoorError`` if the file names other files, or holds foreign operators or some that can run for ever."""
    graph = model.graph
    for node in graph.node:
        if node.domain not in STANDARD:
            raise UndoorError(
                f"{path} calls {node.op_type!r} of the domain {node.domain!r}, and only operators of ONNX itself are "
                "run; export the network without it"
            )
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UndoorError(
                f"{path} holds a loop or a branch ({node.op_type!r}), which can run for ever; "
                "export a network that has none"
            )
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    sparse = any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in attributes)
    if sparse or graph.sparse_initializer or model.functions or model.training_info:
        raise UndoorError(f"{path} holds functions, sparse weights or a training; export the plain network: {EXPORT}")
    tensors = [*graph.initializer, *(t for attribute in attributes for t in (attribute.t, *attribute.tensors))]
    if any(tensor.external_data or tensor.data_location for tensor in tensors):  # location 0 is the file itself
        raise UndoorError(
            f"{path} names other files that hold its weights, and these are never read; export them "
            f"into the file itself: {EXPORT}"
        )


def _split(model: Any, path: Path) -> OnnxNetwork:
    """Return the graph as a body, which ends with the features, and a head."""
    onnx, graph = _library("onnx"), model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UndoorError(
            f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; "
            "export a network that takes images and returns the logits alone"
        )
    batch = _batch_size(inputs[0], path)
    features, weight, bias = _last_layer(graph, constants, path)
    needed, nodes = {features}, list[Any]()
    for node in reversed(graph.node):  # the checker has made sure that nodes come in the order of their use
        if needed & set(node.output):
            nodes.append(node)
            needed.update(node.input)
    output = onnx.helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    body = onnx.helper.make_model(
        onnx.helper.make_graph(nodes[::-1], "body", inputs, [output], weights),
        opset_imports=[opset for opset in model.opset_import if opset.domain in STANDARD],
        ir_version=model.ir_version,
    )
    head = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, weight.shape[1], weight.shape[0]
    )  # skip_init draws no random numbers
    head.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())})
    return OnnxNetwork(body.SerializeToString(), batch, head)


def _batch_size(graph_input: Any, path: Path) -> int | None:
    """Return how many images the input takes at a time, or None if any number; raise if it takes no images."""
    tensor, types = graph_input.type.tensor_type, _library("onnx").TensorProto
    shape = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
    shown = ", ".join("any" if size is None else str(size) for size in shape)
    problem = f"{path} takes {types.DataType.Name(tensor.elem_type).lower()} of shape ({shown})"
    if tensor.elem_type != types.FLOAT or len(shape) != 4 or shape[1] not in (1, 3, None):
        raise UndoorError(
            f"{problem}; export a network that takes float images in [0, 1] of shape (N, 1 or 3, height, width)"
        )
    if shape[0] is not None and shape[0] < 1:
        raise UndoorError(f"{problem}; export it for one image or more at a time")
    return shape[0]


def _last_layer(
    graph: Any, constants: Mapping[str, Any], path: Path
) -> tuple[str, NDArray[np.float32], NDArray[np.float32]]:
    """Return the name of the features, and the weight (K, t) and bias (K,) of the layer that turns them into logits."""
    producers = {name: node for node in graph.node for name in node.output}
    last = producers.get(graph.output[0].name)
    layer = None if last is None else _linear(last, producers, constants)
    if layer is None or layer[1].ndim != 2 or layer[1].dtype != np.float32:
        raise UndoorError(
            f"{path} ends in {'its input' if last is None else last.op_type}, not in a linear layer with float32 "
            "weights; export the network so that it returns its logits"
        )
    features, weight, bias = layer
    return features, weight, np.broadcast_to(bias, (1, len(weight)))[0]


def _linear(
    node: Any, producers: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[str, NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the input's name, weight (K, t) and bias of the linear layer that ends in ``node``; None if there is none.

    Such a layer is a Gemm, or a MatMul with or without an Add behind it.
    """
    helper = _library("onnx.numpy_helper")
    values: list[Any] = [helper.to_array(constants[n]) if n in constants else None for n in node.input]
    match node.op_type, values:
        case "Gemm", [None, np.ndarray() as weight, *rest] if all(value is not None for value in rest):
            settings = {a.name: _library("onnx").helper.get_attribute_value(a) for a in node.attribute}
            alpha, beta = (np.float32(settings.get(name, 1.0)) for name in ("alpha", "beta"))
            weight = alpha * (weight if settings.get("transB") else weight.T)
            bias: Any = beta * rest[0] if rest else np.zeros(1, np.float32)
            return None if settings.get("transA") else (node.input[0], weight, bias)
        case "MatMul", [None, np.ndarray() as weight]:
            return node.input[0], weight.T, np.zeros(1, np.float32)
        case "Add", [None, np.ndarray() as bias] | [np.ndarray() as bias, None]:
            product = producers.get(node.input[0] if node.input[1] in constants else node.input[1])
            if (
                product is not None
                and product.op_type == "MatMul"
                and (layer := _linear(product, producers, constants))
            ):
                return layer[0], layer[1], bias
    return None


@cache
def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UndoorError(
            f"networks in ONNX files need the package {error.name}; install it with: pip install 'undoor[onnx]'"
        ) from None


@cache
def _runtime() -> Any:
    """Return the module ``onnxruntime`` with an allocator of at most ``ROOM`` bytes, which sessions can share."""
    runtime = _library("onnxruntime")
    memory = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    settings = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    runtime.create_and_register_allocator(memory, runtime.OrtArenaCfg({"max_mem": ROOM, **settings}))
    return runtime
