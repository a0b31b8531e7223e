"""Which runs may give their weights to others, and what is said of those that may not."""

import json

import pytest
import yaml

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.config.schema import read_settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.dense_reference import find_dense
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.sources import source_of


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    """The folder of a finished run, with settings and a result, but an empty file for its weights."""
    run = RunFolder(tmp_path / "run")
    run.create(compose_settings(["scale=mini", "width=16"]))
    run.best.touch()
    (run.path / "result.json").write_text(json.dumps({"cer": 0.5}))
    return run


def test_moving_a_class_parts_no_run_from_its_weights(finished):
    settings = finished.settings()
    moved = yaml.safe_dump(settings).replace("_target_: blocksparse_rnn.", "_target_: elsewhere.")
    (finished.path / "config.yaml").write_text(moved)
    source_of(settings | {"weights": str(finished.path)}, "weights")


@pytest.mark.parametrize(
    ("content", "read", "use"),
    [
        ("foo: [", "is damaged; restore it", "is damaged; restore it"),
        ("", "does not fit this version", r"trained with other settings \(model"),
        ("seed: 0", "does not fit this version", r"trained with other settings \(model"),
        (None, "is missing; restore it", "no config.yaml in it"),
    ],
)
def test_settings_that_are_not_a_runs_are_a_line_each(finished, content, read, use):
    settings = finished.settings() | {"weights": str(finished.path), "outputs": str(finished.path.parent)}
    file = finished.path / "config.yaml"
    file.write_text(content) if content is not None else file.unlink()
    with pytest.raises(UserError, match=read):
        read_settings(finished)
    with pytest.raises(UserError, match=use):
        source_of(settings, "weights")
    if "version" in read:
        assert find_dense(settings, "auto") is None
