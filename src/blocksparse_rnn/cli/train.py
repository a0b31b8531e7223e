"""Train a recogniser, or sweep over many.

python src/train.py scale=mini model=rnn width=176
python src/train.py scale=mini width=192 data.hours=5 seed=1 logger=csv
python src/train.py scale=mini model=rnn width=176 sparsifier=bp block=8x2 target_sparsity=0.9
python src/train.py -m model=gru width=2560,3584 sparsifier=glp block=4,16,32
python src/train.py -m -cd sweeps -cn demo dry_run=true
python src/train.py --cfg job          # show the settings
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from blocksparse_rnn.config.compose import check_command_line, settings_last
from blocksparse_rnn.config.schema import resolve
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF, create_folder
from blocksparse_rnn.sweep.plan import show_plan
from blocksparse_rnn.training.train import train

mistakes: list[UserError] = []


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def task(cfg: DictConfig) -> None:
    """Train the one point that Hydra composed; with -m, launcher=slots has each point trained."""
    try:
        train(resolve(cfg))
    except UserError as error:
        mistakes.append(error)  # raised here, Hydra would put a line of its own before ours


def main() -> None:
    """Check the whole command line, then hand it to Hydra."""
    sys.argv[1:] = settings_last(sys.argv[1:])
    points = check_command_line(sys.argv[1:])
    if any(point["dry_run"] for point in points):
        show_plan(points)
        return
    for folder in {point["outputs"] for point in points}:
        create_folder(Path(folder))
    task()
    if mistakes:
        raise mistakes[0]
