"""Which settings change the identity of a run, and which do not."""

import copy

import pytest
import yaml

from blocksparse_rnn.config import compose
from blocksparse_rnn.config.schema import typed
from blocksparse_rnn.runs.identity import identity, run_name

SETTINGS = ("scale=mini", "width=16")


def composed(*overrides: str) -> dict:
    return compose.compose_settings([*SETTINGS, *overrides]).plain()


@pytest.mark.parametrize(
    "same",
    ["outputs=elsewhere", "workers=2", "logger=csv", "trainer.log_every=3", "block=8", "optimizer.lr=2e-3"],
)
def test_where_and_how_a_run_is_done_is_no_part_of_its_identity(same):
    assert identity(composed(same)) == identity(composed())


@pytest.mark.parametrize(
    "other",
    [
        "seed=1",
        "width=17",
        "optimizer.lr=1e-4",
        "trainer.max_epochs=4",
        "optimizer=nesterov",
        "augment=standard",
    ],
)
def test_what_changes_a_result_is(other):
    assert identity(composed(other)) != identity(composed())


def test_a_name_has_the_choices_and_six_digits_of_the_identity():
    settings = composed()
    assert run_name(settings) == f"gru-16-dense-s0-{identity(settings)[:6]}"


def test_a_setting_added_later_leaves_earlier_runs_their_identity():
    settings = composed()
    later = settings | {"later": None, "features": settings["features"] | {"later": None}}
    assert identity(later) == identity(settings)


def test_moving_a_class_renames_no_run():
    def moved(value):
        if isinstance(value, dict):
            return {k: "elsewhere." + v if k == "_target_" else moved(v) for k, v in value.items()}
        return value

    settings = composed("sparsifier=bp", "text=english", "augment=standard")
    assert moved(settings) != settings
    assert identity(moved(settings)) == identity(settings)


def test_the_option_of_a_group_counts_where_all_its_values_are_those_of_another():
    settings = composed("sparsifier=bp")
    assert settings["optimizer"]["name"] == "adamw"
    assert settings["sparsifier"]["block_pruning"]["schedule"]["name"] == "paper"
    other = copy.deepcopy(settings)
    other["optimizer"]["name"] = "another"
    assert identity(other) != identity(settings)


def test_editing_a_value_in_a_yaml_file_gives_a_new_identity(tmp_path, monkeypatch):
    before = identity(composed())
    for path in compose.CONF.rglob("*.yaml"):
        copied = tmp_path / path.relative_to(compose.CONF)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(path.read_text())
    monkeypatch.setattr(compose, "CONF", tmp_path)
    assert identity(composed()) == before
    edited = tmp_path / "optimizer" / "adamw.yaml"
    edited.write_text(edited.read_text().replace("weight_decay: 0.01", "weight_decay: 0.02"))
    assert identity(composed()) != before


def test_settings_survive_config_yaml(tmp_path):
    settings = compose.compose_settings(
        [*SETTINGS, "sparsifier=glp", "target_sparsity=0.5", "augment=standard"]
    )
    again = typed(yaml.safe_load(yaml.safe_dump(settings.plain(), sort_keys=False)))
    assert again.plain() == settings.plain()
    assert again.sparsifier.block_pruning.schedule.name == "paper"
    assert again.trainer == settings.trainer
