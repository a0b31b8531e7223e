"""Finished runs whose weights other runs use: to be re-evaluated, or to start from."""

from typing import Any

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder

WEIGHTS_OF = {
    "weights": ("model", "features", "alphabet", "sparsifier", "seed"),
    "start_from": ("model", "features", "alphabet"),
}
"""Settings that name a run whose weights are used -> settings, or groups of them, that must be those of that run."""


def source_of(settings: dict[str, Any], setting: str) -> RunFolder:
    """The finished run whose weights some settings use.

    Args:
        settings: that use them.
        setting: which of them names the run's folder, one of `WEIGHTS_OF`.

    Raises:
        UserError: no such run, it isn't finished, or what differs.
    """
    source = RunFolder.existing(settings[setting], f"{setting}=")
    if source.result() is None:
        raise UserError(f"{setting}={source.path}: has no result.json; let the training end first")
    trained = source.settings()
    differing = [
        f"{name}.{key}" if isinstance(settings[name], dict) else name
        for name in WEIGHTS_OF[setting]
        for key in (settings[name] if isinstance(settings[name], dict) else [name])
        if key != "specaugment"  # changes training only
        and _at(settings[name], key) != _at(trained[name], key)
    ]
    if differing:
        raise UserError(
            f"{setting}={source.path}: trained with other settings ({', '.join(differing)}); repeat those of "
            f"{source.path / 'config.yaml'}"
        )
    return source


def _at(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else value
