"""Train a recogniser, or sweep over many.

python src/train.py scale=mini model=rnn width=176
python src/train.py scale=mini width=192 data.hours=0.5 seed=1 logger=csv
python src/train.py -m model=gru width=2560,3584
python src/train.py --cfg job          # show the settings
"""

import sys

import hydra
from omegaconf import DictConfig

from blocksparse_rnn import cli
from blocksparse_rnn.command_line import check_command_line
from blocksparse_rnn.config import resolve
from blocksparse_rnn.training import train


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train the one point that Hydra composed."""
    train(resolve(cfg))


def program() -> None:
    """Check the whole command line, then hand it to Hydra."""
    check_command_line(sys.argv[1:])
    main()


if __name__ == "__main__":
    cli.run(program)
