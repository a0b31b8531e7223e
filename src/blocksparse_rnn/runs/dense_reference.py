"""The dense run from which a pruned run takes q."""

from pathlib import Path
from typing import Any

from blocksparse_rnn import distributed
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.sparsifier import DenseWeights
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import same_network, same_recipe

_PREFIX = "model."  # of the model's weights in a recogniser's state_dict


def find_dense(settings: dict[str, Any], q: str) -> DenseWeights | None:
    """Weights of the dense run that `q` names; None if `auto` finds none.

    Args:
        settings: of the run that wants q.
        q: a run's folder, or `auto`: a finished dense run of the same model, data and seed among the
            outputs; of several the one with the same recipe, else the first by name.

    Raises:
        UserError: the folder is no finished dense run, or a file in it is damaged.
    """
    if q != "auto":
        return _load(_named(q))
    # Another dense run may finish while the ranks look.
    chosen = distributed.from_first(_matching(settings))
    return None if chosen is None else _load(chosen)


def _matching(settings: dict[str, Any]) -> RunFolder | None:
    runs = [RunFolder(path.parent) for path in sorted(Path(settings["outputs"]).glob("*/result.json"))]
    matching = [
        (run, same_recipe(other, settings))
        for run in runs
        if run.best.is_file() and _is_dense(other := run.settings()) and same_network(other, settings)
    ]
    matching.sort(key=lambda pair: not pair[1])
    return matching[0][0] if matching else None


def _named(q: str) -> RunFolder:
    run = RunFolder(Path(q))
    if not run.path.is_dir():
        raise UserError(f"q={q}: there is no such folder; give the folder of a finished dense run, or q=auto")
    if run.result() is None or not run.best.is_file():
        raise UserError(
            f"q={q}: is no finished run (it lacks result.json or checkpoints/best.ckpt); or take q=auto"
        )
    if not _is_dense(run.settings()):
        raise UserError(f"q={q}: is a pruned run; give a dense one (sparsifier=none), or q=auto")
    return run


def _is_dense(settings: dict[str, Any]) -> bool:
    sparsifier = settings.get("sparsifier")  # another program's settings may lack it
    return isinstance(sparsifier, dict) and sparsifier.get("name") == "none"


def _load(run: RunFolder) -> DenseWeights:
    weights = load_weights(run.best)
    named = {name.removeprefix(_PREFIX): w for name, w in weights.items() if name.startswith(_PREFIX)}
    return DenseWeights(named, f"dense run {run.path.name}")
