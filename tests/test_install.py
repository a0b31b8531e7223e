"""`make env` with a made-up Python that installs nothing, and what the lock must hold."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
BLOCKS = {block.split("==")[0]: block for block in re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SITE = Path(".venv/lib/python3.11/site-packages")

PYTHON = """#!{real}
import os, pathlib, shutil, sys, types
arguments, this = " ".join(sys.argv[1:]), pathlib.Path(__file__).read_text()
if sys.argv[1] == "-c":
    sys.version_info, sys._base_executable = {version}, __file__
    version = types.SimpleNamespace(cuda=os.environ.get("CUDA"), hip=None)
    sys.modules |= {{"torch": types.SimpleNamespace(version=version), "torchaudio": types}}
    exec(sys.argv[2])
    sys.exit()
print("RUN", arguments)
if arguments.startswith("-m venv"):
    shutil.rmtree(".venv", ignore_errors=True)
    for name in (".venv/bin", "{site}/torch", "{site}/torchaudio/lib"):
        os.makedirs(name)
    pathlib.Path(".venv/bin/python").write_text(this)
    os.chmod(".venv/bin/python", 0o755)
    for name in ("torch/libtorch.so", "torchaudio/lib/_torchaudio.so", "torchaudio/lib/__init__.py"):
        pathlib.Path("{site}", name).touch()
if arguments.endswith(os.environ.get("FAIL", "nothing")):
    sys.exit("no route to host")
"""


def write_python(path, version=(3, 11, 4)):
    path.write_text(PYTHON.format(real=sys.executable, version=version, site=SITE))
    path.chmod(0o755)
    return path


class Project:
    """A folder in which `make env` can run."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        self.python = write_python(folder / "python")

    def env(self, *arguments, **variables):
        """The commands that the made-up Python was given, and the process."""
        done = subprocess.run(
            ["make", "env", *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]} | variables,
            capture_output=True,
            text=True,
        )
        return [line[4:] for line in done.stdout.splitlines() if line.startswith("RUN ")], done

    def stamps(self):
        return [*self.folder.glob(".venv/installed-*")]

    def libraries(self):
        return {path.name for path in self.folder.rglob("*.so")}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return Project(folder)


@pytest.fixture
def installed(project):
    project.env(f"PYTHON={project.python}")
    assert len(project.stamps()) == 1
    return project


def test_torch_is_installed_by_name_before_what_is_locked(project):
    commands, done = project.env(f"PYTHON={project.python}")
    assert done.returncode == 0, done.stderr
    [pin] = PROJECT["tool"]["uv"]["constraint-dependencies"]
    locked = "--require-hashes --no-deps --no-build-isolation --use-pep517 -r"
    assert commands == [
        "-m venv --clear .venv",
        f"-m pip install --no-deps {pin}",
        f"-m pip install {locked} .venv/setuptools.lock",
        f"-m pip install {locked} requirements.lock",
        f"-m pip install {pin}",
        "-m pip install --no-deps --no-build-isolation --editable .",
    ]
    first = (project.folder / ".venv/setuptools.lock").read_text()
    assert re.fullmatch(r"setuptools==\S+ \\\n( +--hash=sha256:\w{64}( \\)?\n)+ +# via.*\n", first)


def test_nothing_happens_when_nothing_has_changed(installed):
    assert installed.env()[0] == []
    assert installed.env(f"PYTHON={installed.python}")[0] == []


def test_a_changed_lock_is_installed_in_place(installed):
    os.utime(installed.stamps()[0], (0, 0))
    commands, _ = installed.env()
    assert len(commands) == 5
    assert installed.env()[0] == []


def test_an_interrupted_install_starts_anew(installed):
    os.utime(installed.stamps()[0], (0, 0))
    _, done = installed.env(FAIL="-r requirements.lock")
    assert done.returncode != 0
    assert "no route to host" in done.stderr
    commands, done = installed.env()
    assert commands[0] == "-m venv --clear .venv"
    assert done.returncode == 0


def test_a_moved_folder_starts_anew(installed, tmp_path):
    installed.folder = installed.folder.rename(tmp_path / "moved")
    assert installed.env()[0][0] == "-m venv --clear .venv"


def test_an_environment_without_its_python_starts_anew(installed):
    (installed.folder / ".venv/bin/python").unlink()
    assert installed.env(f"PYTHON={installed.python}")[0][0] == "-m venv --clear .venv"


def test_another_version_starts_anew_only_where_it_is_chosen(installed):
    newer = write_python(installed.folder / "newer", (3, 14, 0))
    assert installed.env(f"PYTHON={newer}")[0][0] == "-m venv --clear .venv"
    assert installed.env()[0] == []


def test_too_old_a_python_is_one_line(project):
    old = write_python(project.folder / "old", (3, 10, 14))
    commands, done = project.env(f"PYTHON={old}")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    said = f"Python 3.10 is too old, {oldest} or newer is needed: name one, as in PYTHON=python3.12 make demo"
    assert commands == []
    assert done.stderr.splitlines()[0] == said


def test_an_environment_of_another_folder_is_used_as_it_is(installed, tmp_path):
    before = sorted(installed.folder.rglob("*"))
    borrower = tmp_path / "borrower"
    borrower.mkdir()
    project = Project(borrower)
    (borrower / ".venv").symlink_to(installed.folder / ".venv")
    commands, done = project.env(f"PYTHON={project.python}")
    assert (commands, done.returncode) == ([], 0)
    assert sorted(installed.folder.rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="torchaudio needs it on Linux only")
class TestTorchaudio:
    def test_beside_a_cpu_build_of_torch_it_loses_its_cuda_libraries(self, installed):
        assert installed.libraries() == {"libtorch.so"}
        assert (installed.folder / SITE / "torchaudio/lib/__init__.py").exists()

    def test_beside_a_cuda_build_it_is_left_alone(self, project):
        project.env(f"PYTHON={project.python}", CUDA="13.0")
        assert project.libraries() == {"libtorch.so", "_torchaudio.so"}

    @pytest.mark.parametrize("linked", ["torchaudio", "torchaudio/lib"])
    def test_links_out_of_the_environment_are_not_followed(self, installed, tmp_path, linked):
        library = tmp_path / "elsewhere/torchaudio/lib/_torchaudio.so"
        library.parent.mkdir(parents=True)
        library.touch()
        shutil.rmtree(installed.folder / SITE / linked)
        (installed.folder / SITE / linked).symlink_to(tmp_path / "elsewhere" / linked)
        os.utime(installed.stamps()[0], (0, 0))
        assert installed.env()[1].returncode == 0
        assert library.exists()


class TestLock:
    def test_every_package_is_pinned_and_hashed(self):
        assert len(BLOCKS) > 50
        for name, block in BLOCKS.items():
            pin, *rest = block.replace("\\\n", "").splitlines()
            requirement, *hashes = re.split(r"\s+--hash=", pin.strip())
            assert re.fullmatch(r"==[^*,]+", str(Requirement(requirement).specifier)), name
            assert hashes, name
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name
            assert all(not line or line.lstrip().startswith("#") for line in rest), name

    def test_torch_and_what_only_its_cuda_build_needs_stay_out(self):
        assert not [name for name in BLOCKS if re.fullmatch(r"torch|triton|cuda-.*|nvidia-.*", name)]

    def test_every_direct_dependency_is_in_the_lock_within_its_range(self):
        project = PROJECT["project"]
        groups = [project["dependencies"], *project["optional-dependencies"].values()]
        for requirement in map(Requirement, itertools.chain(*groups)):
            name = canonicalize_name(requirement.name)
            if name in ("torch", "triton", project["name"]):
                continue
            assert name in BLOCKS, f"{name} is missing: make lock"
            locked = re.match(r"\S+==(\S+)", BLOCKS[name])
            assert locked
            assert requirement.specifier.contains(locked[1], prereleases=True), f"{requirement}: make lock"

    def test_the_pinned_torch_is_within_its_range(self):
        (pin,) = map(Requirement, PROJECT["tool"]["uv"]["constraint-dependencies"])
        (wanted,) = (r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "torch")
        assert pin.name == "torch"
        assert wanted.specifier.contains(str(pin.specifier).removeprefix("=="))

    def test_the_lock_says_how_to_make_it_and_names_no_place(self):
        assert "make lock" in LOCK.splitlines()[1]
        assert not re.search(r"://|file:|--(extra-)?index|--find-links|/\w+/", LOCK)
