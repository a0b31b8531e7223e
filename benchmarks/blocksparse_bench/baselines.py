"""What else multiplies a sparse or dense matrix by vectors on a CPU. Packages that are not installed are left out.

Each baseline computes y (B, O), or what `as_tensor` turns into it. B batch, I inputs, O outputs.
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
"""Packages of baselines, installed by `make bench`."""


class Method(NamedTuple):
    """A way to compute the product."""

    backend: str
    dtype: str
    work: Callable[[], Any]


def dense_methods(weight_OI: Tensor, x_BI: Tensor) -> Iterator[Method]:
    """Those that compute every product."""
    transposed = weight_OI.t()
    yield Method("torch dense", "fp32", lambda: x_BI @ transposed)
    half, half_x = weight_OI.bfloat16().t(), x_BI.bfloat16()
    yield Method("torch dense", "bf16", lambda: half_x @ half)
    yield from _torch_int8(weight_OI, x_BI)
    if _has("openvino"):
        yield _openvino(weight_OI, x_BI)
    if _has("onnxruntime"):
        yield _onnxruntime(weight_OI, x_BI)


def sparse_methods(weight_OI: Tensor, block: BlockSize, x_BI: Tensor, threads: int) -> Iterator[Method]:
    """Those that skip zeros, blocksparse first."""
    for dtype in DTYPES:
        matrix = BlockSparse.from_dense(weight_OI, block, dtype)
        if dtype == "fp32" or matrix.native_block is not None:
            yield Method("blocksparse", dtype, partial(matrix.product, x_BI, threads))
    columns_IB = x_BI.t().contiguous()
    with warnings.catch_warnings(action="ignore"):  # sparse layouts are in beta
        csr = weight_OI.to_sparse_csr()
        bsr = weight_OI.to_sparse_bsr(block) if block[0] > 1 else None
    yield Method("torch CSR", "fp32", lambda: (csr @ columns_IB).t())
    if bsr is not None:
        yield Method("torch BSR", "fp32", lambda: (bsr @ columns_IB).t())
    if _has("scipy"):
        from scipy.sparse import csr_array

        compressed, columns = csr_array(weight_OI.numpy()), columns_IB.numpy()
        yield Method("scipy CSR", "fp32", lambda: (compressed @ columns).T)
        if _has("sparse_dot_mkl") and _finds_mkl():
            from sparse_dot_mkl import dot_product_mkl

            yield Method("MKL CSR", "fp32", lambda: dot_product_mkl(compressed, columns).T)


def as_tensor(y: Any) -> Tensor:
    """A method's result, float32 (B, O)."""
    return torch.as_tensor(np.ascontiguousarray(y) if isinstance(y, np.ndarray) else y).float()


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _finds_mkl() -> bool:
    """Tell sparse_dot_mkl where pip has put MKL: it looks in the system's folders only."""
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        os.environ.setdefault("MKL_RT", str(library))
    return "MKL_RT" in os.environ


def _torch_int8(weight_OI: Tensor, x_BI: Tensor) -> Iterator[Method]:
    """Dynamic quantisation, which torch has deprecated."""
    try:
        from torch.ao.quantization import quantize_dynamic

        linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
        linear.weight = nn.Parameter(weight_OI)
        with warnings.catch_warnings(action="ignore"):
            quantised = quantize_dynamic(nn.Sequential(linear).eval(), {nn.Linear}, torch.qint8)
    except (ImportError, RuntimeError):
        return
    yield Method("torch dense", "int8", lambda: quantised(x_BI))


def _openvino(weight_OI: Tensor, x_BI: Tensor) -> Method:
    import openvino
    from openvino import opset13 as ops

    parameter = ops.parameter(list(x_BI.shape), np.float32)
    product = ops.matmul(parameter, ops.constant(weight_OI.numpy()), False, True)
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # it would pin the whole process, and all its later threads, to one core
    }
    model = openvino.Model([product], [parameter])
    # OpenVINO gives the thread that compiles a signal stack and later frees it: a signal would end the process.
    with ThreadPoolExecutor(1) as other_thread:
        compiled = other_thread.submit(openvino.Core().compile_model, model, "CPU", settings).result()
    request = compiled.create_infer_request()
    return Method("OpenVINO dense", "fp32", lambda: request.infer([x_BI.numpy()], share_inputs=True)[0])


def _onnxruntime(weight_OI: Tensor, x_BI: Tensor) -> Method:
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
    return Method("ONNX Runtime dense", "fp32", lambda: session.run(None, {"x": x_BI.numpy()})[0])
