"""Encoders in ONNX Runtime, which on many processors beats torch: in fp32, and with int8 matrix products."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.compute.encoder import EncoderError, reason_of

INPUT, OUTPUT = "pixels", "vectors"
LEAST_WEIGHTS = 4_096  # smaller products gain nothing from int8


def exported(module: torch.nn.Module, side: tuple[int, int], *, rows: int) -> Any:
    """An ONNX model of `module` for exactly `rows` images (H, W, 3) uint8. Raises EncoderError."""
    images = torch.zeros(rows, *side, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the exporter's own, of how it calls torch
            program = torch.onnx.export(
                module, (images,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise EncoderError(f"the network cannot be exported to ONNX ({reason_of(error)})") from None
    return program.model_proto  # type: ignore[union-attr]  # there is a program where no file was asked for


def quantised(model: Any) -> Any:
    """The model with products of activations and weights in int8: weights a scale per column, activations per call.

    Activations take their range from what is in the call. One image a call, an image's vector knows no neighbours.
    The last product, a row an image, stays as it is. Raises EncoderError where there is nothing to quantise.
    """
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    products = [node for node in model.graph.node if _is_product(node, weights)][:-1]
    if not products:
        raise EncoderError("the network has no matrix products to quantise; convolutions gain nothing")
    replaced: dict[str, list[Any]] = {}
    for node in products:
        values = numpy_helper.to_array(weights[node.input[1]])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        replaced[node.output[0]] = _in_int8(model.graph, node, values.T if transposed else values)
    nodes = [part for node in model.graph.node for part in replaced.get(node.output[0], [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _is_product(node: Any, weights: dict[str, Any]) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
        return False
    shape = weights[node.input[1]].dims
    scaled = any((a.name in ("alpha", "beta") and a.f != 1.0) or (a.name == "transA" and a.i) for a in node.attribute)
    return len(shape) == 2 and int(np.prod(shape)) >= LEAST_WEIGHTS and not scaled


def _in_int8(graph: Any, node: Any, values: NDArray[np.float32]) -> list[Any]:
    """What takes a product's place. ONNX Runtime makes one kernel of it."""
    from onnx import TensorProto, helper, numpy_helper

    name = node.output[0]
    scale = np.maximum(np.abs(values).max(axis=0), 1e-12).astype(np.float32) / 127
    whole = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    zero = np.zeros(len(scale), np.int8)
    for suffix, array in (("weights", whole), ("scale", scale), ("zero", zero)):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}.{suffix}"))
    biased = len(node.input) > 2
    parts = [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], [f"{name}.q", f"{name}.s", f"{name}.z"]),
        helper.make_node(
            "MatMulInteger", [f"{name}.q", f"{name}.weights", f"{name}.z", f"{name}.zero"], [f"{name}.sums"]
        ),
        helper.make_node("Cast", [f"{name}.sums"], [f"{name}.floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.s", f"{name}.scale"], [f"{name}.scales"]),
        helper.make_node("Mul", [f"{name}.floats", f"{name}.scales"], [f"{name}.product" if biased else name]),
    ]
    return [*parts, helper.make_node("Add", [f"{name}.product", node.input[2]], [name])] if biased else parts


def serialised(model: Any) -> bytes:
    """The model's bytes. Raises EncoderError for one over the 2 GB that the format holds."""
    try:
        found: bytes = model.SerializeToString()
    except (ValueError, RuntimeError) as error:  # protobuf's own errors
        raise EncoderError(f"the network is too large for ONNX ({reason_of(error)})") from None
    return found


def onnx_run(model: bytes) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Runs the model in the calling thread. Raises EncoderError."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # otherwise it numbers the machine when it is imported
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
    ) as error:
        raise EncoderError(f"ONNX Runtime does not load the network ({reason_of(error)})") from None

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = session.run([OUTPUT], {INPUT: pixels})[0]
        return vectors

    return run
