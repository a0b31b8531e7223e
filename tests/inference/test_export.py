"""One file from a trained model: it gives the model's logits, and a damaged file is refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.inference.export import as_network, describe, fold, sizes
from blocksparse_rnn.models.deepspeech2 import DeepSpeech2
from blocksparse_rnn.pruning.blocks import as_grid
from blocksparse_rnn.runtime import bsr, cpu_layers, export_file
from blocksparse_rnn.runtime.export_file import read_network, write_network
from blocksparse_rnn.runtime.network import NetworkStream

FEATURES, OUTPUTS = 20, 7
TOLERANCE = {"fp32": 2e-5, "bf16": 0.03, "int8": 0.08}
"""Of logits, as a share of the largest."""
OTHERS = {"features.mean": torch.arange(float(FEATURES))}
ABOUT = {"alphabet": "abcdef", "note": "ü"}


def pruned_model(cell, block=(4, 4), time_strides=(2, 2), kept=0.3):
    """A small model whose batch norms are not trivial, pruned at random."""
    torch.manual_seed(0)
    convolutions = [
        {"channels": 8, "kernel": [5, 7], "stride": [2, time_strides[0]]},
        {"channels": 8, "kernel": [3, 5], "stride": [1, time_strides[1]]},
    ]
    sizes = {"layers": 2, "hidden_size": 32, "convolutions": convolutions}
    model = DeepSpeech2(FEATURES, OUTPUTS, cell=cell, **sizes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.weight.data.uniform_(-1.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and name != "output.weight":
            mask_RC = torch.rand(weight.shape[0] // block[0], weight.shape[1] // block[1]) < kept
            as_grid(weight.data, block).mul_(mask_RC[:, None, :, None])
    return model.requires_grad_(False)


def utterances(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, FEATURES, generator=generator) for n in lengths]


def reference(model, features):
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    logits, lengths = model(padded, [len(f) for f in features])
    return [row[:n] for row, n in zip(logits, lengths, strict=True)]


def largest_error(found, expected):
    assert [f.shape for f in found] == [e.shape for e in expected]
    scale = max(float(e.abs().max()) for e in expected)
    return max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)) / scale


@pytest.fixture(params=["native", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        for module in (bsr, cpu_layers):
            monkeypatch.setattr(module, "native", lambda: None)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", [(4, 4), (16, 16), (1, 1), (8, 2)])
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_network_computes_what_its_model_computes(way, cell, block, dtype, tmp_path):
    model, features = pruned_model(cell, block), utterances(31, 1, 50, 8, 49)
    network = as_network(model, FEATURES, block, dtype)
    write_network(tmp_path / "m", network, dtype, ABOUT, OTHERS)
    export = read_network(tmp_path / "m")
    expected = reference(model, features)
    assert largest_error(export.network(features, threads=2), expected) < TOLERANCE[dtype]
    assert export.network.fc_HH.block == block
    if dtype == "fp32":
        assert largest_error(export.network(features), network(features)) == 0
    assert (export.dtype, export.about) == (dtype, ABOUT)
    assert torch.equal(export.tensors["features.mean"], OTHERS["features.mean"])


@pytest.mark.parametrize(("width", "block"), [(32, 32), (48, 16), (6, 1)])
def test_dense_models_take_the_largest_block_that_fits(width, block):
    convolutions = [{"channels": 16, "kernel": [3, 3], "stride": [1, 1]}]
    model = DeepSpeech2(2 * width, 3, cell="gru", layers=1, hidden_size=width, convolutions=convolutions)
    network = as_network(model.eval().requires_grad_(False), 2 * width)
    assert network.fc_HH.block == (block, block)
    features = [torch.randn(9, 2 * width)]
    assert largest_error(network(features), reference(model, features)) < 1e-5


@pytest.mark.parametrize(("block", "kept"), [((32, 32), (16, 16)), ((64, 8), (32, 8)), ((12, 12), (4, 4))])
def test_a_block_that_does_not_divide_every_matrix_is_replaced_by_its_largest_part_that_does(block, kept):
    model, features = pruned_model("gru"), utterances(20)  # inputs of 80 and of 32
    network = as_network(model, FEATURES, block)
    assert network.fc_HH.block == kept
    assert largest_error(network(features), reference(model, features)) < 2e-5


def test_batch_norm_folds_into_the_layer_before():
    norm = nn.BatchNorm1d(6).eval()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    weight, x = torch.randn(6, 5), torch.randn(4, 5)
    folded, bias = fold(weight, norm)
    torch.testing.assert_close(x @ folded.t() + bias, norm(x @ weight.t()))


@pytest.mark.parametrize("strides", [(2, 2), (2, 1), (1, 1), (1, 3)])
@pytest.mark.parametrize("pieces", [[1] * 53, [53], [20, 0, 3, 30], [8] * 6 + [5]])
def test_a_stream_gives_the_logits_of_the_whole(strides, pieces):
    model = pruned_model("gru", time_strides=strides)
    network, [feature] = as_network(model, FEATURES, (4, 4)), utterances(53)
    stream = NetworkStream(network, chunk=8)
    found = [stream.feed(piece) for piece in feature.split(pieces)] + [stream.feed(feature[:0], end=True)]
    assert all(len(f) == 0 or len(f) >= 8 for f in found[:-1])
    assert largest_error([torch.cat(found)], reference(model, [feature])) < 1e-5


def test_a_stream_needs_no_more_future_frames_than_stated():
    network, [feature] = as_network(pruned_model("gru"), FEATURES, (4, 4)), utterances(200)
    stream, done = NetworkStream(network, chunk=8), 0
    for t in range(len(feature)):
        done += len(stream.feed(feature[t : t + 1]))
        # Frame n of the logits is centred on feature frame n * stride.
        ready = (t - network.future) // network.time_stride + 1
        assert done >= ready - 7
    assert stream.feed(feature[:0], end=True).shape[0] + done == 50


def test_an_empty_stream_and_an_rnn():
    network = as_network(pruned_model("gru"), FEATURES, (4, 4))
    assert NetworkStream(network, 8).feed(torch.empty(0, FEATURES), end=True).shape == (0, OUTPUTS)
    with pytest.raises(UserError, match="cannot stream"):
        NetworkStream(as_network(pruned_model("rnn"), FEATURES, (4, 4)), 8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    network = as_network(pruned_model("gru"), FEATURES, (4, 4), "int8")
    write_network(path, network, "int8", ABOUT, OTHERS)
    return path


def rewritten(exported, path, change):
    """A valid safetensors file with changed content."""
    with safetensors.safe_open(exported, "pt") as source:
        content = SimpleNamespace(metadata=dict(source.metadata()))
    content.tensors = safetensors.torch.load_file(exported)
    change(content)
    safetensors.torch.save_file(content.tensors, path, content.metadata)
    return path


def refusal(path):
    with pytest.raises(UserError) as error:
        read_network(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_file_cut_short_anywhere_is_refused(exported, tmp_path):
    whole = exported.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cannot be read" in refusal(path)
    path.write_bytes(whole + b"x")
    assert "cannot be read" in refusal(path)


def test_a_flipped_bit_anywhere_is_refused(exported, tmp_path):
    whole = bytearray(exported.read_bytes())
    path = tmp_path / "flipped.safetensors"
    for at in range(40, len(whole), len(whole) // 60):
        whole[at] ^= 4
        path.write_bytes(whole)
        refusal(path)
        whole[at] ^= 4
    path.write_bytes(whole)
    read_network(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.tensors["blocks"][0].add_(1), "changed since it was written"),
        (lambda c: c.tensors.pop("fc.bias"), "changed since it was written"),
        (lambda c: c.metadata.update(about=json.dumps({"alphabet": "x"})), "changed since it was written"),
        (lambda c: c.metadata.update(version="2"), "version 2 of the format, and this program reads 1"),
        (lambda c: c.metadata.pop("format"), "no export of a recogniser"),
        (lambda c: c.metadata.clear(), "no export of a recogniser"),
    ],
)
def test_a_changed_or_newer_file_is_refused(exported, tmp_path, change, words):
    assert words in refusal(rewritten(exported, tmp_path / "m", change))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.tensors["row_pointers"].copy_(c.tensors["row_pointers"].flip(0)),
        lambda c: c.tensors["row_pointers"][3:5].copy_(torch.tensor([900, 0])),
        lambda c: c.tensors["block_columns"][:1].copy_(torch.tensor([60000], dtype=torch.uint16)),
        lambda c: c.tensors.update(blocks=c.tensors["blocks"][1:].clone()),
        lambda c: c.tensors.update(row_scales=c.tensors["row_scales"][1:].clone()),
        lambda c: c.tensors.update({"fc.bias": torch.ones(3)}),
        lambda c: c.tensors.pop("convolution.1.bias"),
        lambda c: c.metadata.update(network=c.metadata["network"].replace("[96,32]", "[96,64]")),
        lambda c: c.metadata.update(network=c.metadata["network"].replace('"gru"', '"rnn"')),
        lambda c: c.metadata.update(network="[]"),
        lambda c: c.metadata.update(network=c.metadata["network"].replace('"matrices":', '"x":')),
        lambda c: c.metadata.update(network=c.metadata["network"].replace("[[2,2]", "[[0,0]")),
        lambda c: c.metadata.update(network=c.metadata["network"].replace("[[2,2]", "[[2]")),
        # Each difference overflows to a positive number.
        lambda c: c.tensors["row_pointers"][1:4].copy_(torch.tensor([2**31 - 1, -(2**31), -1])),
        lambda c: c.tensors.update(row_pointers=c.tensors["row_pointers"][:, None]),
        lambda c: c.tensors.update(block_columns=torch.full_like(c.tensors["block_columns"].int(), -1)),
        lambda c: c.tensors.update(block_columns=c.tensors["block_columns"].float() * torch.nan),
        lambda c: c.tensors.update(blocks=c.tensors["blocks"].float()),
        lambda c: c.tensors.update(blocks=c.tensors["blocks"][:, :0, :0].clone()),
        lambda c: c.tensors.update({"fc.bias": torch.ones(32, 2)}),
        lambda c: c.tensors.update({"convolution.0.bias": torch.ones(8, 2)}),
        lambda c: c.tensors.update({"recurrent.1.bias": torch.ones(95)}),
        lambda c: c.tensors.update({"output.weight": c.tensors["output.weight"][0].clone()}),
    ],
)
def test_parts_that_do_not_fit_are_refused_even_with_a_checksum(exported, tmp_path, change):
    """Native code gets valid arguments from any file."""

    def sign(content):
        change(content)
        content.metadata.pop("sha256")
        content.metadata["sha256"] = export_file._checksum(content.tensors, content.metadata)

    refusal(rewritten(exported, tmp_path / "m", sign))


def test_a_scalar_is_stored(tmp_path):
    network = as_network(pruned_model("gru"), FEATURES, (4, 4))
    write_network(tmp_path / "m", network, "fp32", ABOUT, {"temperature": torch.tensor(2.0)})
    assert read_network(tmp_path / "m").tensors["temperature"] == 2


def test_a_missing_file_and_other_files_are_one_line(exported, tmp_path):
    assert "no such file" in refusal(tmp_path / "missing")
    (tmp_path / "text").write_text("hello, this is no model\n" * 30)
    assert "cannot be read" in refusal(tmp_path / "text")


def test_a_failed_export_leaves_the_old_file(exported, tmp_path):
    path = tmp_path / "m"
    shutil.copy(exported, path)
    network = as_network(pruned_model("gru"), FEATURES, (4, 4))
    with pytest.raises(TypeError):
        write_network(path, network, "fp32", {"what": object()}, {})
    assert path.read_bytes() == exported.read_bytes()


@pytest.mark.parametrize(("dtype", "width", "scales"), [("fp32", 4, 0), ("bf16", 2, 0), ("int8", 1, 4)])
def test_sizes_count_every_weight_index_and_scale(tmp_path, dtype, width, scales):
    model = pruned_model("rnn")
    parameters = sum(p.numel() for p in model.parameters())
    network = as_network(model, FEATURES, (4, 4), dtype)
    found = sizes(write_network(tmp_path / "m", network, dtype, {}, {}), parameters, 10**6)
    matrices = [*(m for layer in network.recurrent for m in layer.matrices), network.fc_HH]
    rows, blocks = sum(m.shape[0] for m in matrices), sum(len(m.columns_N) for m in matrices)
    dense = [*(c.weight_OCFT for c in network.convolutions), network.output_VH]
    rest = width * sum(w.numel() for w in dense) + scales * (rows + sum(map(len, dense)))
    rest += 4 * sum(p.numel() for name, p in model.named_parameters() if name.endswith("norm.bias"))
    rest += 4 * OUTPUTS
    assert found.indices == 2 * blocks + 4 * (rows // 4 + 1)
    assert found.block_sparse == 16 * width * blocks + found.indices + rest
    nonzero = sum(int(m.values_NRC.count_nonzero()) for m in matrices)
    assert found.csr == (width + 2) * nonzero + 4 * (rows + 1) + rest
    assert found.dense_fp32 == 4 * parameters
    assert f"{parameters * 4 / 1e6:.3f} MB" in describe(tmp_path / "m", network, found)
