"""`start_from=RUN`: a training begins with the weights of a finished run instead of random ones.

For a dense recogniser that is to be pruned, or one that goes on with other recordings. Zeros of a pruned
one stay where it is pruned again, and are weights like others where it isn't.
"""

from typing import Any

from blocksparse_rnn.checkpoints import load_weights
from blocksparse_rnn.recogniser import Recogniser
from blocksparse_rnn.runs import RunFolder, source_of


def check_start(settings: dict[str, Any]) -> None:
    """Look whether the run that a training is to start from is there and fits.

    Raises:
        UserError: it isn't, isn't finished, or doesn't.
    """
    source_of(settings, "start_from", ("model", "features", "alphabet"), but=("specaugment",))


def start_from(recogniser: Recogniser, path: str) -> None:
    """Load the best weights of a run, and its statistics of the features, for which they were trained.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    recogniser.load_state_dict(load_weights(RunFolder.existing(path).best))
