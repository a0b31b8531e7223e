"""Finished runs whose weights other runs use: `weights=RUN` re-evaluates them, `start_from=RUN` trains them further."""

from collections.abc import Iterable
from typing import Any

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import same_settings

WEIGHTS_OF = {
    "weights": ("model", "features", "alphabet", "sparsifier", "seed"),
    "start_from": ("model", "features", "alphabet"),
}
"""Setting that names a run -> settings, or groups of them, that must equal those of that run."""


def source_of(settings: dict[str, Any], setting: str) -> RunFolder:
    """The finished run whose weights some settings use.

    Args:
        settings: that use them.
        setting: which of them names the run's folder, one of `WEIGHTS_OF`.

    Raises:
        UserError: there is no such run, it isn't finished, or it was trained with other settings.
    """
    source = RunFolder.existing(settings[setting], f"{setting}=")
    if source.result() is None:
        raise UserError(f"{setting}={source.path}: has no result.json; let the training end first")
    wanted, trained = (_flat(values, WEIGHTS_OF[setting]) for values in (settings, source.settings()))
    differing = [name for name in wanted if not same_settings(wanted, trained, [name])]
    if differing:
        raise UserError(
            f"{setting}={source.path}: trained with other settings ({', '.join(differing)}); repeat those of "
            f"{source.path / 'config.yaml'}"
        )
    return source


def _flat(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Some settings, those within a group as `group.name`, without what does not change the use of weights."""
    flat: dict[str, Any] = {}
    for name in names:
        value = settings.get(name)
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    # Where a class lies in the code does not matter, and SpecAugment changes training only.
    return {name: v for name, v in flat.items() if not name.endswith(("._target_", ".specaugment"))}
