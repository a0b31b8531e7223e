"""The Triton layers against torch's: in Triton's interpreter on a CPU, and on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_runtime import LENGTHS, TOLERANCE, gru_of_training, packed_frames, rnn_of_training, sparse_matrix

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.cuda_graphs import CapturedGraphs, bucket
from blocksparse_rnn.models.recurrence import CLIP
from blocksparse_rnn.runtime.bsr import BlockSparse
from blocksparse_rnn.runtime.cuda_layers import DeviceMatrix, gru_layer, rnn_layer

ON_GPU = torch.cuda.is_available()  # if not, kernels are interpreted (conftest.py)
pytest.importorskip("triton", reason="make triton installs it beside a CPU build of torch")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BLOCKS = [(4, 4), (8, 8), (16, 16), (32, 32), (8, 2), (1, 1)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if (request.param == "cuda") != ON_GPU:
        pytest.skip("with a GPU kernels are compiled, without one they are interpreted")
    return torch.device(request.param)


def matrix(rows, columns, block, dtype, seed, device):
    dense = sparse_matrix(rows, columns, block, 0.5, seed) / columns**0.5
    sparse = BlockSparse.from_dense(dense, block, dtype)
    return sparse.to_dense(), DeviceMatrix.of(sparse, device)


def allowed(dtype, expected):
    """Weights are compared as rounded, so only the rounding of activations differs."""
    return {"fp32": 1e-5}.get(dtype, 2e-2) * max(1.0, float(expected.abs().max()))


def sides(block):
    """Units and inputs: several blocks, few enough for an interpreter."""
    return max(4, 2 * block[0], 2 * block[1]), max(4, 3 * block[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", BLOCKS)
def test_layers_equal_those_of_training(device, block, dtype):
    units, inputs = sides(block)
    x, sizes = packed_frames([3, 3, 1], inputs)
    w, w_device = matrix(3 * units, inputs, block, dtype, 1, device)
    u, u_device = matrix(3 * units, units, block, dtype, 2, device)
    bias = torch.randn(3 * units)
    expected = gru_of_training(w, u, bias, x, sizes)
    result = gru_layer(w_device, u_device, bias.to(device), x.to(device), sizes).cpu()
    assert (result - expected).abs().max() < allowed(dtype, expected)

    w, w_device = matrix(units, inputs, block, dtype, 3, device)
    forward, forward_device = matrix(units, units, block, dtype, 4, device)
    backward, backward_device = matrix(units, units, block, dtype, 5, device)
    bias = bias[:units]
    expected = rnn_of_training(w, forward, backward, bias, x, sizes)
    matrices = (w_device, forward_device, backward_device)
    result = rnn_layer(*matrices, bias.to(device), x.to(device), sizes).cpu()
    assert (result - expected).abs().max() < allowed(dtype, expected)


@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
def test_any_number_of_utterances_of_any_length(device, lengths):
    lengths = [min(length, 6) for length in lengths]
    x, sizes = packed_frames(lengths, 16)
    w, w_device = matrix(16, 16, (16, 16), "fp32", 1, device)
    u, u_device = matrix(16, 16, (16, 16), "fp32", 2, device)
    expected = rnn_of_training(w, u, u, 0, x, sizes)
    result = rnn_layer(w_device, u_device, u_device, torch.zeros(16).to(device), x.to(device), sizes)
    assert (result.cpu() - expected).abs().max() < 1e-5 * max(1.0, float(expected.max()))


def test_a_graph_serves_all_sequences_of_its_bucket_and_keeps_nothing_of_the_last(device):
    w, w_device = matrix(24, 8, (8, 8), "fp32", 1, device)
    u, u_device = matrix(24, 8, (8, 8), "fp32", 2, device)
    bias = torch.randn(24)
    for lengths in ([10, 10, 10, 10], [9, 4, 1], [10, 2, 2, 1]):
        x, sizes = packed_frames(lengths, 8)
        expected = gru_of_training(w, u, bias, x, sizes)
        result = gru_layer(w_device, u_device, bias.to(device), x.to(device), sizes)
        torch.testing.assert_close(result.cpu().double(), expected, atol=1e-5, rtol=0)
    assert len(u_device._graphs) == 2  # of 10 steps: 4 vectors and 3


def test_a_gru_goes_on_from_its_state(device):
    w, u = (matrix(24, 8, (4, 4), "fp32", seed, device)[1] for seed in (1, 2))
    bias = torch.randn(24, device=device)
    x, sizes = packed_frames([6, 6, 6], 8)
    whole, state = gru_layer(w, u, bias, x.to(device), sizes), torch.zeros(3, 8, device=device)
    parts = [gru_layer(w, u, bias, piece, sizes[:3], state) for piece in x.to(device).split(9)]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(state, whole[-3:])
    x, sizes = packed_frames([5, 2, 1], 8)
    hidden = gru_layer(w, u, bias, x.to(device), sizes, state)
    torch.testing.assert_close(state, hidden[[7, 4, 2]])  # each utterance's after its own end


def test_relu_clips_and_keeps_nan(device):
    one = DeviceMatrix.of(BlockSparse.from_dense(torch.eye(8), (4, 4)), device)
    x = torch.tensor([[-1.0, 0, 1, 19, 20, 21, 1e9, -1e9], [float("nan")] + 7 * [1.0]], device=device)
    result = rnn_layer(one, one, one, torch.zeros(8, device=device), x, [2]).cpu()
    assert torch.equal(result[0], 2 * x[0].cpu().clamp(0, CLIP))
    assert result[1].isnan().any()


def test_an_empty_matrix_gives_the_bias(device):
    nothing = DeviceMatrix.of(BlockSparse.from_dense(torch.zeros(32, 32), (16, 16)), device)
    bias = torch.randn(32, device=device)
    assert torch.equal(nothing.product(torch.randn(3, 32, device=device), bias), bias.expand(3, 32))


def test_what_does_not_fit_is_one_line(device):
    w, u = (matrix(24, 8, (4, 4), "fp32", seed, device)[1] for seed in (1, 2))
    other = matrix(8, 8, (8, 8), "fp32", 1, device)[1]
    square = matrix(8, 8, (4, 4), "fp32", 1, device)[1]
    x, bias = torch.ones(3, 8, device=device), torch.zeros(24, device=device)
    for words, action in {
        "never grow": lambda: gru_layer(w, u, bias, x, [1, 2]),
        "state must be": lambda: gru_layer(w, u, bias, x, [2, 1], x),
        "one block": lambda: rnn_layer(square, square, other, bias[:8], x, [2, 1]),
        "take sides of": lambda: DeviceMatrix.of(BlockSparse.from_dense(torch.ones(6, 6), (3, 3)), device),
    }.items():
        with pytest.raises(UserError, match=words) as error:
            action()
        assert "\n" not in str(error.value)


def test_buckets_waste_at_most_a_quarter_and_are_few():
    sizes = [bucket(n) for n in range(1, 2000)]
    assert all(n <= size <= max(n, 1.25 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 45
    assert [bucket(size) for size in sizes] == sizes


def test_the_least_recently_used_graph_is_dropped():
    made = []
    graphs: CapturedGraphs[int] = CapturedGraphs(2)
    for key in (1, 2, 1, 3, 1, 2):
        graphs.get(key, lambda key=key: made.append(key) or key)
    assert made == [1, 2, 3, 2]
    assert len(graphs) == 2


COMPILE = """
import itertools, json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from blocksparse_rnn.runtime import triton_kernels as kernels
from blocksparse_rnn.runtime import cuda_layers
from blocksparse_rnn.runtime.bsr import BlockSparse

TYPES = {"fp32": "*fp32", "bf16": "*bf16", "int8": "*i8"}
INTEGERS = {"frames", "rows", "width", "t", "step", "last"}
found = []
for block, dtype in [(4, "fp32"), (4, "int8"), (16, "fp32"), (16, "bf16"), (32, "int8")]:
    matrix = cuda_layers.DeviceMatrix.of(BlockSparse.from_dense(torch.eye(64), (block, block), dtype), "cpu")
    for kernel, vectors in [("product", 200), ("gru_step", 1), ("gru_step", 32), ("rnn_step", 32)]:
        function = getattr(kernels, kernel)
        tiles = matrix.tiles(vectors) | {"WIDE": block < 16}  # as on a GPU
        types = {}
        for name in function.arg_names:
            if name in tiles:
                types[name] = "constexpr"
            elif name.endswith("value"):
                types[name] = TYPES[dtype]
            elif name.endswith(("pointer", "column")) or (name in ("rows", "first") and kernel != "product"):
                types[name] = "*i32"
            else:
                types[name] = "i32" if name in INTEGERS else "fp32" if name == "clip" else "*fp32"
        source = ASTSource(function, types, {(function.arg_names.index(k),): v for k, v in tiles.items()})
        for capability in (80, 90):
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            unit = "mma" in made.asm["ptx"]
            found.append([kernel, block, dtype, capability, unit, len(made.asm["cubin"]), made.metadata.shared])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_gpus_even_where_there_is_none(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 40
    for _, block, dtype, _, on_tensor_cores, size, shared in found:
        assert size > 0
        assert shared < 100_000  # bytes; what a program may have on these GPUs, with room
        assert on_tensor_cores == (block >= 16 and dtype != "fp32")


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_the_benchmark_compares_layers_that_agree(device, cell, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_runtime

    rows = gpu_runtime.compare(cell, 64, 8, 2, steps=2, device=device, repetitions=1)
    assert [(row["backend"], row["dtype"]) for row in rows] == [
        *((f"torch nn.{cell.upper()}", dtype) for dtype in ("fp32", "bf16")),
        *(("blocksparse", dtype) for dtype in ("fp32", "bf16", "int8")),
    ]
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.skipif(ON_GPU, reason="needs a machine without a GPU")
def test_without_a_gpu_the_check_says_so_in_one_line_and_fails(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--out", str(tmp_path / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "gpu-check: torch finds no GPU on this machine, so nothing was checked\n"
    assert not (tmp_path / "gpu").exists()
