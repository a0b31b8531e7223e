"""What else multiplies a sparse or dense matrix with vectors on a CPU. Missing packages are left out.

Each rival is a function of no arguments that returns y (B, O) or something that `as_tensor` makes it from.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from blocksparse_rnn.pruning.blocks import BlockSize
from blocksparse_rnn.runtime.bsr import DTYPES, BlockSparse

OPTIONAL = ("scipy", "sparse_dot_mkl", "mkl", "openvino", "onnxruntime")
"""Packages of rivals, installed by `make bench`."""


class Rival(NamedTuple):
    """A way to compute the product."""

    backend: str
    dtype: str
    work: Callable[[], Any]


def dense_rivals(weight_OI: Tensor, x_BI: Tensor) -> Iterator[Rival]:
    """Those that don't know of zeros."""
    transposed = weight_OI.t()
    yield Rival("torch dense", "fp32", lambda: x_BI @ transposed)
    half, half_x = weight_OI.bfloat16().t(), x_BI.bfloat16()
    yield Rival("torch dense", "bf16", lambda: half_x @ half)
    yield from _torch_int8(weight_OI, x_BI)
    if _has("openvino"):
        yield _openvino(weight_OI, x_BI)
    if _has("onnxruntime"):
        yield _onnxruntime(weight_OI, x_BI)


def sparse_rivals(weight_OI: Tensor, block: BlockSize, x_BI: Tensor, threads: int) -> Iterator[Rival]:
    """Those that skip zeros, ours first."""
    for dtype in DTYPES:
        matrix = BlockSparse.from_dense(weight_OI, block, dtype)
        if dtype == "fp32" or matrix.native_block is not None:
            yield Rival("blocksparse", dtype, partial(matrix.product, x_BI, threads))
    columns_IB = x_BI.t().contiguous()
    with warnings.catch_warnings(action="ignore"):  # that they are in beta
        csr = weight_OI.to_sparse_csr()
        bsr = weight_OI.to_sparse_bsr(block) if block[0] > 1 else None
    yield Rival("torch CSR", "fp32", lambda: (csr @ columns_IB).t())
    if bsr is not None:
        yield Rival("torch BSR", "fp32", lambda: (bsr @ columns_IB).t())
    if _has("scipy"):
        from scipy.sparse import csr_array

        compressed, columns = csr_array(weight_OI.numpy()), columns_IB.numpy()
        yield Rival("scipy CSR", "fp32", lambda: (compressed @ columns).T)
        if _has("sparse_dot_mkl") and _finds_mkl():
            from sparse_dot_mkl import dot_product_mkl

            yield Rival("MKL CSR", "fp32", lambda: dot_product_mkl(compressed, columns).T)


def as_tensor(y: Any) -> Tensor:
    """A rival's result, float32 (B, O)."""
    return torch.as_tensor(np.ascontiguousarray(y) if isinstance(y, np.ndarray) else y).float()


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _finds_mkl() -> bool:
    """Tell sparse_dot_mkl where pip has put MKL: it looks in the system's folders only."""
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        os.environ.setdefault("MKL_RT", str(library))
    return "MKL_RT" in os.environ


def _torch_int8(weight_OI: Tensor, x_BI: Tensor) -> Iterator[Rival]:
    """Dynamic quantisation, which torch is about to drop."""
    try:
        from torch.ao.quantization import quantize_dynamic

        linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
        linear.weight = nn.Parameter(weight_OI)
        with warnings.catch_warnings(action="ignore"):
            quantised = quantize_dynamic(nn.Sequential(linear).eval(), {nn.Linear}, torch.qint8)
    except (ImportError, RuntimeError):
        return
    yield Rival("torch dense", "int8", lambda: quantised(x_BI))


def _openvino(weight_OI: Tensor, x_BI: Tensor) -> Rival:
    import openvino
    from openvino import opset13 as ops

    parameter = ops.parameter(list(x_BI.shape), np.float32)
    product = ops.matmul(parameter, ops.constant(weight_OI.numpy()), False, True)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # it would tie the whole process to a core, and every thread after it
    }
    model = openvino.Model([product], [parameter])
    # Compiling, OpenVINO gives its thread a stack for signals, and frees it one day: then a signal ends the process.
    with ThreadPoolExecutor(1) as elsewhere:
        compiled = elsewhere.submit(openvino.Core().compile_model, model, "CPU", settings).result()
    request = compiled.create_infer_request()
    return Rival("OpenVINO dense", "fp32", lambda: request.infer([x_BI.numpy()], share_inputs=True)[0])


def _onnxruntime(weight_OI: Tensor, x_BI: Tensor) -> Rival:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    transposed = numpy_helper.from_array(np.ascontiguousarray(weight_OI.t().numpy()), "w")
    shapes = {"x": list(x_BI.shape), "y": [len(x_BI), len(weight_OI)]}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items())
    graph = helper.make_graph([node], "product", [x], [y], [transposed])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return Rival("ONNX Runtime dense", "fp32", lambda: session.run(None, {"x": x_BI.numpy()})[0])
