"""A network as one file of safetensors: what its layers hold, and what else a recogniser needs to know.

All block-sparse matrices lie one under the other, as if they were one:

  blocks          (N, R, C)  the blocks that are not zero, row of blocks by row of blocks
  block_columns   (N)        column of each within its matrix, counted in blocks; uint16
  row_pointers               where each row of blocks begins, and where the last one ends; int32
  row_scales                 of int8: what one step of a weight is worth, for each row

Beside them lie `convolution.N.weight` (channels, inputs, frequency, time), `output.weight` and the biases, into
which batch norm is folded; int8 weights have a `.scale` for each row. The file's metadata hold `format`,
`version`, `network` and `about` as JSON, and `sha256` over all tensors and metadata. Nothing is pickled, and
nothing depends on the processor.
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
from blocksparse_rnn.runtime.bsr import DTYPES, BlockSparse
from blocksparse_rnn.runtime.network import Convolution, Network, Recurrent

FORMAT = "blocksparse-rnn"
VERSION = 1
"""Of the file; raised when an older program could not read it any more."""
UNFIT = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading a file may raise whose parts are whole, and not what this program knows."""
_CHECKSUM = "sha256"


class Export(NamedTuple):
    """What a file holds."""

    network: Network
    dtype: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    """All of them, by name."""


def write_network(
    path: Path, network: Network, dtype: str, about: dict[str, Any], others: dict[str, Tensor]
) -> None:
    """Write a network and what goes with it.

    Args:
        path: the file, replaced once the new one is complete.
        network: block-sparse matrices of one block and one dtype.
        dtype: fp32, bf16 or int8, also of convolutions and output layer; biases stay fp32.
        about: whatever a reader needs besides, for JSON.
        others: tensors that a reader needs besides, by names of their own.

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
    tensors |= others
    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {"network": _compact(described), "about": _compact(about)}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata[_CHECKSUM] = _checksum(tensors, metadata)
    with durable_file(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def read_network(path: Path) -> Export:
    """All that a file holds.

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
        raise UserError(f"{path}: not a network that this program knows: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: safetensors, but no export of a recogniser; make one with src/export.py")
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise UserError(
            f"{path}: written in version {version} of the format, and this program reads {VERSION}; "
            "update the program, or export the run with it"
        )


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.flatten().contiguous()  # flat, since a single number has no dimension to see as bytes
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
    """A dense weight in a number format; int8 with a scale for each of its first dimension."""
    if dtype != "int8":
        return {name: weight.to(DTYPES[dtype])}
    largest_O = weight.flatten(1).abs().amax(1)
    scale_O = torch.where(largest_O > 0, largest_O / 127, 1.0)
    return {name: torch.round(weight / _along(scale_O, weight)).to(torch.int8), f"{name}.scale": scale_O}


def _restored(tensors: dict[str, Tensor], name: str) -> Tensor:
    weight = tensors[name].float()
    return weight if f"{name}.scale" not in tensors else weight * _along(tensors[f"{name}.scale"], weight)


def _along(scale_O: Tensor, weight: Tensor) -> Tensor:
    return scale_O.view(-1, *[1] * (weight.ndim - 1))


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
    """Matrices that lie one under the other, taken off one by one."""

    tensors: dict[str, Tensor]
    block_row: int = 0
    row: int = 0

    def __post_init__(self) -> None:
        values_NRC, pointers = self.tensors["blocks"], self.tensors["row_pointers"]
        _want(values_NRC.ndim == 3 and values_NRC.dtype in DTYPES.values(), "blocks")
        _want(self.tensors["block_columns"].shape == values_NRC.shape[:1], "block_columns")
        # Compared, not subtracted: a difference may overflow.
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
