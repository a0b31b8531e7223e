"""From a trained run to a network of the runtime, and to one file."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blocksparse_rnn.config.nodes import plain
from blocksparse_rnn.config.schema import Settings, read_settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import create_folder
from blocksparse_rnn.models import layers
from blocksparse_rnn.models.deepspeech2 import DeepSpeech2
from blocksparse_rnn.models.layers import GRULayer, RNNLayer
from blocksparse_rnn.pruning.blocks import BlockSize, parse_block
from blocksparse_rnn.pruning.prunable import count_parameters
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runtime.bsr import DTYPES, NATIVE_BLOCKS, BlockSparse
from blocksparse_rnn.runtime.export_file import write_network
from blocksparse_rnn.runtime.network import Convolution, Network, Recurrent
from blocksparse_rnn.training.recogniser import Recogniser, build_recogniser

_ABOUT_RUN = (
    *("name", "identity", "seed", "sparsifier", "block", "cer", "wer", "sparsity/total", "sparsity/prunable"),
    *("parameters", "epochs", "train_hours", "commit", "finished"),
)
"""Keys of result.json that the file repeats."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a recogniser's weights in several formats."""

    dense_fp32: int
    csr: int
    """Nonzero weights in the export's number format, with a 16-bit column each."""
    block_sparse: int
    indices: int
    """The part of `block_sparse` that is block columns and row pointers."""
    file: int


def describe(out: Path, network: Network, sizes: Sizes) -> str:
    """The file's size beside the sizes of other formats, as text."""
    block = network.fc_HH.block
    share = sizes.indices / sizes.block_sparse
    rows = [
        ("dense, fp32", sizes.dense_fp32, ""),
        ("nonzero weights with their columns (CSR)", sizes.csr, ""),
        (f"blocks of {block[0]}x{block[1]}", sizes.block_sparse, f"of which indices {share:.1%}"),
        (str(out), sizes.file, f"{sizes.dense_fp32 / sizes.file:.1f} times smaller than dense fp32"),
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}} {size / 1e6:9.3f} MB  {note}".rstrip() for name, size, note in rows)


def load_run(path: str | Path) -> tuple[Settings, Recogniser]:
    """Settings and best recogniser of a run.

    Raises:
        UserError: no run folder, or its checkpoint can't be read or doesn't fit its settings.
    """
    run = RunFolder.existing(path)
    settings = read_settings(run)
    recogniser = build_recogniser(settings).eval()
    try:
        recogniser.load_state_dict(load_weights(run.best))
    except RuntimeError as error:
        misfit = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise UserError(
            f"{path}: its checkpoint does not fit its config.yaml: {misfit}; restore config.yaml or train again"
        ) from None
    return settings, recogniser


def export_run(path: str | Path, out: Path, dtype: str = "fp32") -> tuple[Network, Sizes]:
    """Write a run's best recogniser as one file.

    Args:
        path: the run's folder.
        out: the file to write.
        dtype: number format of the weights: fp32, bf16 or int8.

    Raises:
        UserError: no run, an unknown dtype, no permission, no space left.
    """
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name the file to write, such as {out / 'model.safetensors'}")
    settings, recogniser = load_run(path)
    network = run_network(settings, recogniser, dtype)
    result = RunFolder(path).result() or {}
    about = {
        "alphabet": settings.alphabet,
        "features": {key: v for key, v in plain(settings.features).items() if key != "_target_"},
        "run": {key: result[key] for key in _ABOUT_RUN if key in result},
    }
    statistics = {"features.mean": recogniser.features.mean_F, "features.std": recogniser.features.std_F}
    create_folder(out.parent)
    tensors = write_network(out, network, dtype, about, statistics)
    total = count_parameters(recogniser.model, settings.prunable).total
    return network, sizes(tensors, total, out.stat().st_size)


def run_network(settings: Settings, recogniser: Recogniser, dtype: str = "fp32") -> Network:
    """A run's recogniser for the runtime, in the blocks in which it was pruned."""
    model = recogniser.model
    assert isinstance(model, DeepSpeech2)
    pruned = settings.sparsifier.name != "none"
    block = parse_block(settings.block) if pruned else None
    return as_network(model, recogniser.features.size, block, dtype)


@torch.no_grad()
def as_network(
    model: DeepSpeech2, features: int, block: BlockSize | None = None, dtype: str = "fp32"
) -> Network:
    """A model for the runtime, batch norm folded in.

    Args:
        model: in eval mode.
        features: values in a frame of features.
        block: in which it was pruned; None for the largest block that has native kernels. A block that doesn't
            divide every matrix is replaced by its largest part that does.
        dtype: number format of the block-sparse matrices.

    Raises:
        UserError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    matrices: list[Tensor] = [p for name, p in model.named_parameters() if _is_sparse(name, p)]
    fitting = _largest_block(matrices) if block is None else _largest_part(block, matrices)

    def sparse(weight_OI: Tensor) -> BlockSparse:
        return BlockSparse.from_dense(weight_OI, fitting, dtype)

    recurrent = []
    for layer in model.recurrent:
        assert isinstance(layer, RNNLayer | GRULayer)
        w_OI, bias_O = fold(layer.weight_ih, layer.norm)
        reverse = sparse(layer.weight_hh_reverse) if isinstance(layer, RNNLayer) else None
        recurrent.append(Recurrent(sparse(w_OI), sparse(layer.weight_hh), reverse, bias_O))
    fc_HH, fc_bias_H = fold(model.fc.weight, model.fc.norm)
    convolutions = []
    for each in model.front.convolutions:
        assert isinstance(each, layers.Convolution)
        convolutions.append(Convolution(*fold(each.conv.weight, each.norm), each.stride))
    return Network(
        cell="gru" if recurrent[0].u_reverse is None else "rnn",
        features=features,
        convolutions=tuple(convolutions),
        recurrent=tuple(recurrent),
        fc_HH=sparse(fc_HH),
        fc_bias_H=fc_bias_H,
        output_VH=model.output.weight.detach().clone(),
        output_bias_V=model.output.bias.detach().clone(),
    )


def fold(weight: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that equals this layer without bias followed by batch norm in eval mode."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale_O = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias_O = norm.bias.double() - norm.running_mean.double() * scale_O
    scaled = weight.double() * scale_O.view(-1, *[1] * (weight.ndim - 1))
    return scaled.float(), bias_O.float()


def sizes(tensors: dict[str, Tensor], parameters: int, file: int) -> Sizes:
    """Sizes of a network with these tensors in its file, and of its dense model with this many parameters."""
    blocks, pointers = tensors["blocks"], tensors["row_pointers"]
    block_sparse = sum(tensor.nbytes for tensor in tensors.values())
    indices = tensors["block_columns"].nbytes + pointers.nbytes
    rows = (len(pointers) - 1) * blocks.shape[1]
    csr = int(blocks.count_nonzero()) * (blocks.itemsize + 2) + 4 * (rows + 1)
    return Sizes(
        dense_fp32=4 * parameters,
        csr=block_sparse - blocks.nbytes - indices + csr,
        block_sparse=block_sparse,
        indices=indices,
        file=file,
    )


def _is_sparse(name: str, weight: Tensor) -> bool:
    """Whether the runtime stores a weight in blocks: the recurrent and the fully connected ones."""
    return weight.ndim == 2 and name != "output.weight"


def _largest_part(block: BlockSize, matrices: list[Tensor]) -> BlockSize:
    """The largest part of a block that divides all matrices; a square's part is square, as native kernels need."""
    rows, columns = (math.gcd(block[axis], *(m.shape[axis] for m in matrices)) for axis in (0, 1))
    return (rows, columns) if block[0] != block[1] else (math.gcd(rows, columns),) * 2


def _largest_block(matrices: list[Tensor]) -> BlockSize:
    """The largest native block that divides all matrices; 1x1 if none does."""
    fitting = [n for n in NATIVE_BLOCKS if not any(side % n for m in matrices for side in m.shape)]
    side = max(fitting, default=1)
    return side, side
