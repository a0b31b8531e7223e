"""The wheel holds all that the commands need, and works in any folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import blocksparse_rnn
from blocksparse_rnn.files import SOURCE

ROOT = SOURCE.parent
MAPPED = {
    "src/blocksparse_rnn": "blocksparse_rnn",
    "src/hydra_plugins": "hydra_plugins",
    "benchmarks/blocksparse_bench": "blocksparse_bench",
    "conf": "blocksparse_rnn/conf",
    "sweeps": "blocksparse_rnn/sweeps",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The contents of a wheel, built in a copy of the checkout."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("src", "benchmarks", "conf", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    [wheel] = copy.glob("dist/*.whl")
    assert f"-{blocksparse_rnn.__version__}-" in wheel.name
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(site, folder, *arguments):
    """What a Python that has the wheel, and is in `folder`, prints."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_it_holds_every_file_of_the_packages_and_all_settings(installed):
    found = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    expected = {
        str(Path(place) / p.relative_to(ROOT / folder))
        for folder, place in MAPPED.items()
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_it_has_the_command_and_finds_its_own_settings(installed, tmp_path):
    [entry_points] = installed.glob("*.dist-info/entry_points.txt")
    assert "blocksparse-rnn = blocksparse_rnn.cli.main:main" in entry_points.read_text().splitlines()
    script = "from blocksparse_rnn.files import CONF, SWEEPS; print(CONF, SWEEPS, sep='\\n')"
    folders = run(installed, tmp_path, "-c", script).splitlines()
    assert folders == [str(installed / "blocksparse_rnn" / name) for name in ("conf", "sweeps")]


@pytest.mark.slow
def test_it_trains_reports_exports_and_transcribes_in_an_empty_folder(installed, tmp_path):
    def command(*arguments):
        return run(installed, tmp_path, "-m", "blocksparse_rnn.cli.main", *arguments)

    short = ["data.hours=0.05", "data.vocabulary=100", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    command("train", "scale=mini", "model=rnn", "width=48", "logger=csv", *short)
    [result] = tmp_path.glob("outputs/*/result.json")
    command("report", "outputs", "--out", "report")
    assert result.parent.name in (tmp_path / "report/report.csv").read_text()
    command("export", str(result.parent), "rnn.safetensors")
    [audio, *_] = sorted(tmp_path.glob("corpora/**/*.flac"))
    assert str(audio) in command("transcribe", "rnn.safetensors", str(audio))


def test_changelog_and_citation_name_its_version():
    versions = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == blocksparse_rnn.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == blocksparse_rnn.__version__
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
