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
from hydra.errors import HydraException
from omegaconf import DictConfig
from yaml import YAMLError

from blocksparse_rnn.config.compose import read_command
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF, create_folder
from blocksparse_rnn.sweep.plan import run_sweep, show_plan
from blocksparse_rnn.training.cost import cost_on_cpu
from blocksparse_rnn.training.train import train


def main() -> None:
    """Compose and check the command line, then show the plan, train, or run the sweep."""
    command = read_command(sys.argv[1:])
    if any(settings.dry_run for settings in command.runs):
        show_plan(command.runs)
        return
    for folder in {settings.outputs for settings in command.runs}:
        create_folder(Path(folder))
    if note := cost_on_cpu(command.runs):
        print(note, file=sys.stderr, flush=True)
    if command.hydra:
        sys.argv[1:] = command.arguments
        try:
            _hydra()
        except (HydraException, YAMLError) as error:  # shown settings, as by --cfg, are not checked before
            raise UserError(str(error).splitlines()[0]) from None
    elif command.multirun:
        sys.exit(run_sweep(command.runs))
    else:
        train(command.runs[0])


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def _hydra(cfg: DictConfig) -> None:
    """Never called: Hydra shows its help or the settings, or passes the runs of a sweeper to `hydra_plugins`."""
