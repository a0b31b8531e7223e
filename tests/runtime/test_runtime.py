"""The block-sparse runtime against float64, for every block, number format and variant."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.recurrence import CLIP, gru_forward, rnn_both
from blocksparse_rnn.pruning.blocks import as_grid
from blocksparse_rnn.runtime import bsr, library
from blocksparse_rnn.runtime.bsr import BlockSparse
from blocksparse_rnn.runtime.cpu_layers import gru_layer, rnn_layer

BLOCKS = [(4, 4), (8, 8), (16, 16), (32, 32), (1, 1), (8, 2), (8, 16)]
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "int8": 2e-2}
"""Error of a product, as a share of the sum of its terms' magnitudes, or of a layer's state."""
VARIANTS = [n for n, v in library.VARIANTS.items() if v.needs <= library._processor_abilities()]


@pytest.fixture(params=[*VARIANTS, "torch"])
def variant(request, monkeypatch):
    """Each variant of the kernels in turn, and torch."""
    chosen = None if request.param == "torch" else library.load(request.param)
    for module in ("bsr", "cpu_layers"):
        monkeypatch.setattr(f"blocksparse_rnn.runtime.{module}.native", lambda: chosen)
    return request.param


def sparse_matrix(rows, columns, block, density, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    kept = torch.rand(rows // block[0], columns // block[1], generator=generator) < density
    as_grid(weight, block).mul_(kept[:, None, :, None])
    return weight


def error_bound(x_BI, weight_OI, dtype):
    """Largest error of a product: rounding of both sides, and of the sum."""
    magnitudes_BO = x_BI.abs() @ weight_OI.abs().t()
    if dtype != "int8":
        return TOLERANCE[dtype] * magnitudes_BO + 1e-9
    half_step_B1, half_step_1O = x_BI.abs().amax(1)[:, None] / 254, weight_OI.abs().amax(1)[None] / 254
    in_x, in_w = half_step_B1 * weight_OI.abs().sum(1), half_step_1O * x_BI.abs().sum(1, keepdim=True)
    return 1.01 * (in_x + in_w + half_step_B1 * half_step_1O * x_BI.shape[1]) + 1e-9


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", BLOCKS)
def test_products_equal_the_dense_ones(variant, block, dtype):
    @settings(deadline=None, max_examples=12)
    @given(
        rows=st.integers(1, 4),
        columns=st.integers(1, 6),
        count=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33]),
        density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        threads=st.integers(1, 3),
        seed=st.integers(0, 99),
    )
    def check(rows, columns, count, density, threads, seed):
        weight = sparse_matrix(32 * rows, 32 * columns, block, density, seed)
        x = torch.randn(count, 32 * columns, generator=torch.Generator().manual_seed(seed))
        matrix = BlockSparse.from_dense(weight, block, dtype)
        expected = x.double() @ weight.double().t()
        bound = error_bound(x.double(), weight.double(), dtype)
        assert ((matrix.product(x, threads) - expected).abs() <= bound).all()

    check()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", [4, 16])
def test_native_and_torch_round_alike(block, dtype, monkeypatch):
    weight = sparse_matrix(64, 96, (block, block), 0.4, 1)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    native = BlockSparse.from_dense(weight, (block, block), dtype).product(x)
    monkeypatch.setattr(bsr, "native", lambda: None)
    plain = BlockSparse.from_dense(weight, (block, block), dtype).product(x)
    if dtype == "bf16":  # processors that multiply bf16 themselves round activations too
        assert ((native - plain).abs() <= error_bound(x.double(), weight.double(), dtype)).all()
    else:
        torch.testing.assert_close(native, plain, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_spread_as_in_the_dense_product(variant, bad, dtype):
    weight = sparse_matrix(32, 32, (4, 4), 1.0, 0)
    x = torch.randn(3, 32)
    x[1, 5] = bad
    result = BlockSparse.from_dense(weight, (4, 4), dtype).product(x)
    expected = x @ weight.t()
    assert result[[0, 2]].isfinite().all()
    assert torch.equal(result[1].isnan(), expected[1].isnan())
    assert torch.equal(result[1].isfinite(), expected[1].isfinite())
    weight[7, 3] = bad
    matrix = BlockSparse.from_dense(weight, (4, 4), dtype)
    assert not matrix.product(torch.randn(2, 32))[:, 7].isfinite().any()


@pytest.mark.skipif(bsr.native() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("block", "density", "side"),
    [
        ((16, 16), 1.0, 16),
        ((64, 64), 1.0, 32),
        ((32, 8), 1.0, 8),  # in parts, however many
        ((8, 2), 0.1, 4),  # with zeros beside them
        ((1, 1), 0.1, 4),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_blocks_without_kernels_are_multiplied_in_blocks_with_kernels(block, density, side, dtype):
    weight = sparse_matrix(128, 192, block, density, 0)
    matrix = BlockSparse.from_dense(weight, block, dtype)
    assert matrix.native_block == side
    assert matrix.block == block
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matrix.product(x), BlockSparse.from_dense(weight, (side, side), dtype).product(x))


@pytest.mark.skipif(bsr.native() is None, reason="needs a C++ compiler")
def test_torch_multiplies_single_weights_of_large_matrices_and_odd_sides():
    assert BlockSparse.from_dense(sparse_matrix(2048, 1024, (1, 1), 0.1, 0), (1, 1)).native_block is None
    assert BlockSparse.from_dense(sparse_matrix(2048, 1024, (8, 2), 0.3, 0), (8, 2)).native_block == 4
    assert BlockSparse.from_dense(torch.eye(6), (2, 2)).native_block is None


@pytest.mark.parametrize("block", BLOCKS)
def test_to_dense_gives_the_matrix_back(block):
    weight = sparse_matrix(64, 32, block, 0.3, 3)
    assert torch.equal(BlockSparse.from_dense(weight, block).to_dense(), weight)
    scale = weight.abs().amax(1, keepdim=True) / 127
    error = BlockSparse.from_dense(weight, block, "int8").to_dense() - weight
    assert (error.abs() <= scale / 2 + 1e-7).all()


LENGTHS = [[1], [9], [9, 9, 6, 1], [12] * 3 + [7] * 6, [5] * 18]


def packed_frames(lengths, size):
    x = torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(0))
    packed = pack_padded_sequence(x, lengths, batch_first=True)
    return packed.data, packed.batch_sizes.tolist()


def gru_of_training(w, u, bias, x, sizes):
    """The layer in float64, by training's own core; so is the next."""
    return gru_forward(x.double() @ w.double().t() + bias, u.double(), sizes)


def rnn_of_training(w, forward, backward, bias, x, sizes):
    return rnn_both(x.double() @ w.double().t() + bias, forward.double(), backward.double(), sizes)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
def test_layers_equal_those_of_training(variant, block, dtype, lengths):
    x, sizes = packed_frames(lengths, 64)
    w, u = sparse_matrix(96, 64, block, 0.5, 1) / 8, sparse_matrix(96, 32, block, 0.5, 2) / 6
    bias = torch.randn(96)
    matrices = [BlockSparse.from_dense(m, block, dtype) for m in (w, u)]
    expected = gru_of_training(w, u, bias, x, sizes)
    result = gru_layer(*matrices, bias, x, sizes, threads=2)
    assert (result - expected).abs().max() < 20 * TOLERANCE[dtype] * (0.2 if dtype == "int8" else 0.1)

    w, bias = w[:32], bias[:32]
    forward, backward = (sparse_matrix(32, 32, block, 0.5, seed) / 8 for seed in (3, 4))
    matrices = [BlockSparse.from_dense(m, block, dtype) for m in (w, forward, backward)]
    expected = rnn_of_training(w, forward, backward, bias, x, sizes)
    result = rnn_layer(*matrices, bias, x, sizes, threads=2)
    assert (result - expected).abs().max() < TOLERANCE[dtype] * 4 * max(1.0, float(expected.max()))


def test_relu_clips_where_that_of_training_does(variant):
    one = BlockSparse.from_dense(torch.eye(8), (4, 4))
    x = torch.tensor([[-1.0, 0, 1, 19, 20, 21, 500, 1e9]])
    assert torch.equal(rnn_layer(one, one, one, torch.zeros(8), x, [1]), 2 * x.clamp(0, CLIP))


def test_a_gru_goes_on_from_its_state(variant):
    x, sizes = packed_frames([8, 8, 8], 32)
    w, u = (BlockSparse.from_dense(sparse_matrix(96, 32, (4, 4), 0.5, s) / 6, (4, 4)) for s in (1, 2))
    bias, state = torch.randn(96), torch.zeros(3, 32)
    whole = gru_layer(w, u, bias, x, sizes)
    parts = [gru_layer(w, u, bias, piece, sizes[:4], state) for piece in x.split(12)]
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(state, whole[-3:])
    short, sizes = packed_frames([5, 2, 1], 32)
    state = torch.ones(3, 32)
    hidden = gru_layer(w, u, bias, short, sizes, state)
    torch.testing.assert_close(state, hidden[[7, 4, 2]])  # each utterance's after its own end


def test_without_batch_norm_it_is_torchs_gru(variant):
    reference = nn.GRU(32, 32, batch_first=True)
    with torch.no_grad():
        reference.bias_hh_l0.zero_()
    x = torch.randn(2, 11, 32)
    w, u = (BlockSparse.from_dense(m, (8, 8)) for m in (reference.weight_ih_l0, reference.weight_hh_l0))
    packed = pack_padded_sequence(x, [11, 11], batch_first=True)
    result = gru_layer(w, u, reference.bias_ih_l0.detach(), packed.data, packed.batch_sizes.tolist())
    expected = reference(packed)[0].data.detach()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def test_several_python_threads_may_multiply_at_once():
    weight = sparse_matrix(128, 128, (8, 8), 0.3, 0)
    matrix, x = BlockSparse.from_dense(weight, (8, 8)), torch.randn(9, 128)
    expected, wrong = matrix.product(x), []

    def work():
        for _ in range(50):
            if not torch.equal(matrix.product(x, threads=2), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def bsr_of(values, columns, pointer, *scale, shape=(8, 8)):
    return BlockSparse(shape, values, torch.tensor(columns), torch.tensor(pointer), *scale)


ONE, EYE = torch.ones(1, 4, 4), torch.eye(8)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: BlockSparse.from_dense(EYE, (4, 4), "fp16"), "must be one of fp32, bf16, int8"),
        (lambda: BlockSparse.from_dense(torch.ones(8, 6), (4, 4)), "do not divide the 6"),
        (lambda: BlockSparse.from_dense(torch.ones(8, 0), (4, 4)), "each side must be at least 1"),
        (lambda: bsr_of(ONE, [2], [0, 1, 1]), "beyond"),
        (lambda: bsr_of(ONE, [-1], [0, 1, 1]), "beyond"),
        (lambda: bsr_of(ONE, [0], [0, 1]), "do not fit"),
        (lambda: bsr_of(ONE, [0], [0, 10**9, 1]), "do not fit"),
        (lambda: bsr_of(ONE, [0, 1], [0, 1, 2]), "do not fit"),
        (lambda: bsr_of(ONE.half(), [0], [0, 1], shape=(4, 4)), "float16 without scales"),
        (lambda: bsr_of(ONE.char(), [0], [0, 1], shape=(4, 4)), "int8 without scales"),
        (
            lambda: bsr_of(ONE.char(), [0], [0, 1], torch.ones(3), shape=(4, 4)),
            "scales for a matrix of 4 rows",
        ),
        (lambda: BlockSparse.from_dense(EYE, (4, 4)).product(torch.ones(2, 7)), "8 columns"),
        (lambda: BlockSparse.from_dense(EYE, (4, 4)).product(torch.ones(1, 8), 0), "threads=0"),
        (lambda: BlockSparse.from_dense(EYE, (4, 4)).product(torch.ones(1, 8), -1), "threads=-1"),
        (lambda: BlockSparse.from_dense(EYE, (4, 4)).product(torch.ones(1, 8, device="meta")), "not on meta"),
    ],
)
def test_shapes_that_do_not_fit_are_one_line(action, words):
    with pytest.raises(UserError, match=words) as error:
        action()
    assert "\n" not in str(error.value)


def test_sequences_that_do_not_fit_are_one_line():
    w, u = (BlockSparse.from_dense(torch.ones(96, 32), (4, 4)) for _ in range(2))
    for frames, sizes, bias, words in [
        (torch.ones(3, 32), [1, 2], torch.ones(96), "never grow"),
        (torch.ones(3, 31), [2, 1], torch.ones(96), "frames must be"),
        (torch.ones(3, 32), [2, 1], torch.ones(95), "96 values"),
    ]:
        with pytest.raises(UserError, match=words):
            gru_layer(w, u, bias, frames, sizes)
    frames, one = torch.ones(1, 8), BlockSparse.from_dense(torch.eye(8), (4, 4))
    for threads, device, words in [(0, "cpu", "threads=0"), (1, "meta", "computes on the CPU, not on meta")]:
        with pytest.raises(UserError, match=words):
            gru_layer(w, u, torch.ones(96), torch.ones(3, 32, device=device), [2, 1], threads=threads)
        with pytest.raises(UserError, match=words):
            rnn_layer(one, one, one, torch.ones(8), frames.to(device), [1], threads)
        with pytest.raises(UserError, match=words):
            one.gradient(frames, frames.to(device), threads)


@pytest.mark.skipif(bsr.native() is None, reason="needs a C++ compiler")
def test_a_lack_of_threads_is_an_exception():
    """In a process of its own, with too little memory for a thousand stacks."""
    program = (
        "import resource, torch; from blocksparse_rnn.runtime.bsr import BlockSparse\n"
        "m = BlockSparse.from_dense(torch.eye(64), (4, 4))\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + 2**30, resource.RLIM_INFINITY))\n"
        "try: m.product(torch.ones(1, 64), threads=1000)\n"
        "except MemoryError as error: print(error)\n"
        "print(float(m.product(torch.ones(1, 64)).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "the block-sparse runtime got no memory, or no thread\n64.0\n", done.stderr


def test_sources_ask_for_nothing_that_gcc_11_lacks():
    """Supported distributions still have GCC 11."""
    folder = Path(library.__file__).parent / "cpp"
    assert not any("__builtin_shufflevector(" in (folder / name).read_text() for name in library._SOURCES)


def multiply_in_a_process(cache, **environment):
    program = (
        "import torch; from blocksparse_rnn.runtime.bsr import BlockSparse;"
        "m = BlockSparse.from_dense(torch.eye(8), (4, 4));"
        "print(m.native_block, float(m.product(torch.ones(1, 8)).sum()))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "BSR_VARIANT": "portable"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_without_a_compiler_or_with_one_that_fails_torch_serves(tmp_path):
    for environment, words in [
        ({"CXX": "/nowhere/c++"}, "does not run"),
        ({"CXX": "false"}, "does not run"),
        ({"BSR_VARIANT": "avx1024"}, "this processor runs"),
        ({"BSR_NATIVE": "0"}, ""),
    ]:
        out, err = multiply_in_a_process(tmp_path, **environment).communicate()
        assert out == "None 8.0\n"
        assert words in err
        assert err.count("\n") == (1 if words else 0)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A read-only cache that has the library: nothing may be compiled."""
    if bsr.native() is None:
        pytest.skip("needs a C++ compiler")
    cache = tmp_path / "blocksparse-rnn"
    cache.mkdir()
    source = Path(library.load(VARIANTS[-1])._name)
    shutil.copy(source, cache)
    (cache / "lock").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiles"))
    return cache / source.name


def test_a_cache_that_can_only_be_read_serves(compiled, monkeypatch):
    assert library.load(VARIANTS[-1])._name == str(compiled)
    monkeypatch.setenv("CXX", f"env {library._compiler()[0]}")
    assert library.load(VARIANTS[-1])._name == str(compiled)


def test_without_a_compiler_what_was_compiled_before_serves(compiled, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert library.load(VARIANTS[-1])._name == str(compiled)
    compiled.unlink()
    with pytest.raises(UserError, match="does not run"):
        library.load(VARIANTS[-1])


def test_no_place_to_compile_into_is_one_line(monkeypatch, tmp_path):
    def fails(*_):
        raise error

    for name, error in [
        ("tempfile.TemporaryDirectory", FileNotFoundError("no temporary folder")),
        ("_open", OSError("noexec")),
    ]:
        with monkeypatch.context() as patch:
            (tmp_path / "file").write_text("")
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
            patch.setattr(library, "_version", lambda _: "1")
            patch.setattr(library, "_compile", lambda path, _: path)
            patch.setattr(f"blocksparse_rnn.runtime.library.{name}", fails)
            with pytest.raises(UserError, match=f"^runtime: no folder to compile into .*{error}"):
                library.load(VARIANTS[-1])
    error = RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fails)
    with pytest.raises(UserError, match=r"^runtime: no cache folder"):
        library.load(VARIANTS[-1])
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(UserError, match=r"^runtime: CXX=g.. ': No closing quotation"):
        library._compiler()


@pytest.mark.slow
def test_two_processes_compile_once_and_a_damaged_library_is_compiled_again(tmp_path):
    both = [multiply_in_a_process(tmp_path) for _ in range(2)]
    results = [process.communicate() for process in both]
    assert [out for out, _ in results] == ["4 8.0\n"] * 2
    assert sum("compiling" in err for _, err in results) == 1
    [compiled] = (tmp_path / "blocksparse-rnn").glob("*.so")
    compiled.write_bytes(b"not a library")
    out, err = multiply_in_a_process(tmp_path).communicate()
    assert out == "4 8.0\n"
    assert "compiling" in err


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_costs_a_compilation_each_time(tmp_path):
    (tmp_path / "file").write_text("")
    out, err = multiply_in_a_process(tmp_path / "file").communicate()
    assert out == "4 8.0\n"
    assert "compiling" in err


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sanitizers_find_nothing(variant, sanitizers, tmp_path):
    program, sources = tmp_path / "program", Path(library.__file__).parent / "cpp"
    flags = [f for f in library._flags(variant) if f not in ("-shared", "-O3")]
    flags += ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{sources}"]
    source = Path(__file__).parent / "sanitize_runtime.cpp"
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all ran\n", "")


def test_memory_does_not_grow_over_ten_thousand_calls():
    weight = sparse_matrix(64, 64, (8, 8), 0.5, 0)
    x, (frames, sizes) = torch.randn(3, 64), packed_frames([4, 2], 64)
    gates = sparse_matrix(192, 64, (8, 8), 0.5, 0)

    def calls(count):
        for _ in range(count):
            BlockSparse.from_dense(weight, (8, 8)).product(x, 2)
            gru_layer(w, u, torch.zeros(192), frames, sizes)
        return int(Path("/proc/self/statm").read_text().split()[1])

    w, u = (BlockSparse.from_dense(gates, (8, 8)) for _ in range(2))
    before = calls(500)
    assert calls(4500) - before < 256  # pages; 4500 leaks of a single one would show
