"""Which settings a result depends on: the identity of a run, its name, and comparisons between runs."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

NOT_IDENTITY = (
    *("outputs", "corpora", "logger", "sweep", "workers", "checkpoints", "launcher", "dry_run"),
    # Other settings repeat these where they matter: a dense run has no block.
    *("block", "target_sparsity", "q", "schedule", "scale", "skip_zeros"),
)
"""Settings that change where or how a run is done, but not its result."""
NOT_IDENTITY_WITHIN = {
    "data": ("folder", "root", "download", "workers"),
    "trainer": ("devices", "accelerator", "strategy", "log_every", "max_skipped"),
}


def identity(settings: dict[str, Any]) -> str:
    """A hash, ten hexadecimal digits, of all settings on which the result depends.

    Null values do not count: a setting added later with null as its default leaves the identity of earlier
    runs as it was. A node counts by the name of its option, not by the path of its class, so that moving a class
    renames no run.
    """
    chosen = _values({name: _chosen(settings, name) for name in settings if name not in NOT_IDENTITY})
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:10]


def _values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _values(v) for key, v in value.items() if v is not None and key != "_target_"}
    return value


def _chosen(settings: dict[str, Any], name: str) -> Any:
    """A setting without the keys that do not change a result."""
    value = settings.get(name)  # which the settings of an earlier run may lack
    if isinstance(value, dict):
        return {key: v for key, v in value.items() if key not in NOT_IDENTITY_WITHIN.get(name, ())}
    return value


def recipe(settings: dict[str, Any]) -> str:
    """A hash of all settings but seed, model and sparsifier; only runs of one recipe are compared."""
    return identity(settings | dict.fromkeys(("seed", "model", "width", "sparsifier", "prunable")))


def same_settings(one: dict[str, Any], other: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether two runs agree in these settings, as far as they change a result."""
    return all(_values(_chosen(one, n)) == _values(_chosen(other, n)) for n in names)


def same_network(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs train the same model on the same data with the same seed; a re-evaluation trains none."""
    trained = not (one.get("weights") or other.get("weights"))
    return trained and same_settings(one, other, ("model", "features", "data", "seed"))


def same_recipe(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs train in the same way; their decoders may differ."""
    return recipe(one | {"decoder": None}) == recipe(other | {"decoder": None})


def needs_dense(settings: dict[str, Any]) -> bool:
    """Whether a run looks for a finished dense one to take q from."""
    pruning = settings["sparsifier"].get("block_pruning")
    return pruning is not None and pruning["target_sparsity"] is None and pruning["q"] == "auto"


def run_name(settings: dict[str, Any]) -> str:
    """Readable name of a run: its choices and a short form of its identity."""
    sparsifier = settings["sparsifier"]["name"]
    choices = [settings["model"]["cell"], str(settings["width"])]
    if sparsifier == "none":
        choices += ["dense"]
    else:
        choices += [sparsifier, f"b{settings['block']}"]
        if "block_pruning" in settings["sparsifier"]:
            target = settings["target_sparsity"]
            choices += [] if target is None else [f"t{target:g}"]
        else:
            choices += [f"l{settings['sparsifier']['group_lasso']['lambda_g']:g}"]
    if settings.get("weights"):
        decoder = settings["decoder"]
        choices += [f"a{decoder['alpha']:g}", f"w{decoder['beta']:g}"] if "alpha" in decoder else ["again"]
    return "-".join([*choices, f"s{settings['seed']}", identity(settings)[:6]])
