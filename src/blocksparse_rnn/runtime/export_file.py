"""A network as one safetensors file.

All block-sparse matrices are stacked, as if they were one:

  blocks          (N, R, C)  the nonzero blocks, one row of blocks after the other
  block_columns   (N)        column of each block within its matrix, counted in blocks; uint16
  row_pointers               first block of each row of blocks, and the end of the last row; int32
  row_scales                 for int8: the scale of each row

The other tensors are `convolution.N.weight` (channels, inputs, frequency, time), `output.weight` and the biases,
batch norm folded in; int8 weights have a `.scale` for each row. The metadata hold `format`, `version`, `network` and
`about` as JSON, and `sha256` over all tensors and metadata. Nothing is pickled, and nothing depends on the processor.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.runtime.bsr import DTYPES, BlockSparse, along_rows, quantise
from blocksparse_rnn.runtime.network import Convolution, Network, Recurrent

FORMAT = "blocksparse-rnn"
VERSION = 1
"""Of the format; raised when older programs can't read the new files."""
UNFIT = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""Exceptions of a file that is intact, but not of this format."""
_CHECKSUM = "sha256"


class Export(NamedTuple):
    """The content of a file."""

    network: Network
    dtype: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    """All of them, by name."""


def write_network(
    path: Path, network: Network, dtype: str, about: dict[str, Any], others: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Write a network.

    Args:
        path: the file, replaced once the new one is complete.
        network: block-sparse matrices of one block and one dtype.
        dtype: fp32, bf16 or int8, also of convolutions and output layer; biases stay fp32.
        about: anything else for the reader, written as JSON.
        others: further tensors for the reader.

    Returns:
        The network's tensors, as written.

    Raises:
        UserError: no permission, no space.
    """
    matrices = dict(_matrices(network))
    tensors = _stack(list(matrices.values()))
    for name, weight in _dense_weights(network):
        tensors |= _stored(name, weight, dtype)
    tensors |= {name: bias.float() for name, bias in _biases(network)}
    described = {
        "dtype": dtype,
        "cell": network.cell,
        "features": network.features,
        "strides": [c.stride for c in network.convolutions],
        "matrices": {name: m.shape for name, m in matrices.items()},
    }
    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {"network": _compact(described), "about": _compact(about)}
    written = {name: tensor.contiguous() for name, tensor in (tensors | others).items()}
    metadata[_CHECKSUM] = _checksum(written, metadata)
    with durable_file(path) as file:
        file.write(safetensors.torch.save(written, metadata))
    return tensors


def read_network(path: Path) -> Export:
    """Read a file that `write_network` has written.

    Raises:
        UserError: no such file, no export, a newer one, one cut short or changed since it was written.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        raise UserError(f"{path}: cannot be read as an export ({reason}); copy or export it again") from None
    if metadata.pop(_CHECKSUM, None) != _checksum(tensors, metadata):
        raise UserError(f"{path}: changed since it was written (its checksum differs); export it again")
    try:
        described = json.loads(metadata["network"])
        network = _network(tensors, described)
        return Export(network, described["dtype"], json.loads(metadata["about"]), tensors)
    except UNFIT as error:
        raise UserError(
            f"{path}: not a network of this program: {first_line(error)}; export the run again"
        ) from None


def first_line(error: Exception) -> str:
    """An exception's message, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: a safetensors file, but no export of a recogniser; make one with src/export.py"
        )
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise UserError(
            f"{path}: has version {version} of the format, and this program reads {VERSION}; "
            "update the program, or export the run with it"
        )


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.flatten().contiguous()  # a scalar has no dimension to view as bytes
        digest.update(flat.view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _matrices(network: Network) -> Iterator[tuple[str, BlockSparse]]:
    names = ("weight_ih", "weight_hh", "weight_hh_reverse")
    for i, layer in enumerate(network.recurrent):
        for name, matrix in zip(names, layer.matrices, strict=False):
            yield f"recurrent.{i}.{name}", matrix
    yield "fc.weight", network.fc_HH


def _dense_weights(network: Network) -> Iterator[tuple[str, Tensor]]:
    for i, convolution in enumerate(network.convolutions):
        yield f"convolution.{i}.weight", convolution.weight_OCFT
    yield "output.weight", network.output_VH


def _biases(network: Network) -> Iterator[tuple[str, Tensor]]:
    for i, convolution in enumerate(network.convolutions):
        yield f"convolution.{i}.bias", convolution.bias_O
    for i, layer in enumerate(network.recurrent):
        yield f"recurrent.{i}.bias", layer.bias_O
    yield "fc.bias", network.fc_bias_H
    yield "output.bias", network.output_bias_V


def _stored(name: str, weight: Tensor, dtype: str) -> dict[str, Tensor]:
    """A dense weight in a number format; int8 with a scale for each row."""
    if dtype != "int8":
        return {name: weight.to(DTYPES[dtype])}
    whole, scale_O = quantise(weight)
    return {name: whole.to(torch.int8), f"{name}.scale": scale_O}


def _restored(tensors: dict[str, Tensor], name: str) -> Tensor:
    weight = tensors[name].float()
    scale_O = tensors.get(f"{name}.scale")
    return weight if scale_O is None else weight * along_rows(scale_O, weight)


def _stack(matrices: list[BlockSparse]) -> dict[str, Tensor]:
    before, pointers = 0, [torch.zeros(1, dtype=torch.int32)]
    for matrix in matrices:
        pointers.append(matrix.row_pointer[1:].int() + before)
        before += len(matrix.columns_N)
    tensors = {
        "blocks": torch.cat([m.values_NRC for m in matrices]),
        "block_columns": torch.cat([m.columns_N for m in matrices]).to(torch.uint16),
        "row_pointers": torch.cat(pointers),
    }
    scales = [m.row_scale_O for m in matrices if m.row_scale_O is not None]
    return tensors | ({"row_scales": torch.cat(scales)} if scales else {})


@dataclass
class _Stacked:
    """Stacked matrices, read one after the other."""

    tensors: dict[str, Tensor]
    block_row: int = 0
    row: int = 0

    def __post_init__(self) -> None:
        values_NRC, pointers = self.tensors["blocks"], self.tensors["row_pointers"]
        _want(values_NRC.ndim == 3 and values_NRC.dtype in DTYPES.values(), "blocks")
        _want(self.tensors["block_columns"].shape == values_NRC.shape[:1], "block_columns")
        # Compared, not subtracted: differences may overflow.
        rising = bool((pointers[1:] >= pointers[:-1]).all()) and int(pointers[0]) == 0
        _want(rising and int(pointers[-1]) == len(values_NRC), "row_pointers")

    def take(self, shape: tuple[int, int]) -> BlockSparse:
        values_NRC, scales = self.tensors["blocks"], self.tensors.get("row_scales")
        rows = shape[0] // values_NRC.shape[1]
        pointer = self.tensors["row_pointers"][self.block_row : self.block_row + rows + 1]
        first, last = int(pointer[0]), int(pointer[-1])
        scale_O = None if scales is None else scales[self.row : self.row + shape[0]]
        _want(scale_O is None or len(scale_O) == shape[0], "row_scales")
        self.block_row, self.row = self.block_row + rows, self.row + shape[0]
        columns_N = self.tensors["block_columns"][first:last].int()
        return BlockSparse(shape, values_NRC[first:last], columns_N, pointer - first, scale_O)


def _network(tensors: dict[str, Tensor], described: dict[str, Any]) -> Network:
    stacked = _Stacked(tensors)
    _want(("row_scales" in tensors) == (described["dtype"] == "int8"), "row_scales")
    matrices = {name: stacked.take((shape[0], shape[1])) for name, shape in described["matrices"].items()}
    _want(stacked.block_row + 1 == len(tensors["row_pointers"]), "row_pointers")
    fc_HH = matrices.pop("fc.weight")
    layers: dict[str, list[BlockSparse]] = {}
    for name, matrix in matrices.items():
        layers.setdefault(name.rpartition(".")[0], []).append(matrix)
    return Network(
        cell=described["cell"],
        features=described["features"],
        convolutions=tuple(
            Convolution(
                _restored(tensors, f"convolution.{i}.weight"), tensors[f"convolution.{i}.bias"], tuple(stride)
            )
            for i, stride in enumerate(described["strides"])
        ),
        recurrent=tuple(_recurrent(m, tensors[f"{name}.bias"]) for name, m in layers.items()),
        fc_HH=fc_HH,
        fc_bias_H=tensors["fc.bias"],
        output_VH=_restored(tensors, "output.weight"),
        output_bias_V=tensors["output.bias"],
    )


def _recurrent(matrices: list[BlockSparse], bias_O: Tensor) -> Recurrent:
    w, u, *reverse = matrices
    return Recurrent(w, u, reverse[0] if reverse else None, bias_O)


def _want(condition: bool, name: str) -> None:
    if not condition:
        raise ValueError(f"{name} does not fit the rest")
