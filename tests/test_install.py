"""The installer's decisions on made-up environments, and what the lock must hold."""

import ast
import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HERE = sys.version_info[:2]

spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
assert spec is not None
assert spec.loader is not None
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


def make_venv(folder: Path, *, cuda: str | None = None, hip: str | None = None) -> Path:
    """Lay out as much of an environment as the installer reads."""
    venv = folder / ".venv"
    site = venv / "lib" / "python3.11" / "site-packages"
    for directory in (venv / "bin", site / "torch", site / "torchaudio" / "lib"):
        directory.mkdir(parents=True)
    (venv / "bin" / "python").touch()
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = {}.{}.0\n".format(*HERE))
    (site / "torch" / "version.py").write_text(f"cuda = {cuda!r}\nhip = {hip!r}\n")
    (site / "torch" / "libtorch.so").touch()
    for name in ("__init__.py", "_torchaudio.so", "libtorchaudio.so"):
        (site / "torchaudio" / "lib" / name).touch()
    return venv


def libraries(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.so")}


class TestTorchaudioBesideTorch:
    def test_cpu_build_frees_torchaudio_and_says_so_in_one_line(self, tmp_path, capsys):
        venv = make_venv(tmp_path)
        install.free_torchaudio_of_cuda(venv, platform="linux")
        assert libraries(venv) == {"libtorch.so"}
        assert list(venv.rglob("torchaudio/lib/__init__.py"))
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        assert "2 CUDA libraries of torchaudio" in said

    def test_second_time_is_silent(self, tmp_path, capsys):
        venv = make_venv(tmp_path)
        install.free_torchaudio_of_cuda(venv, platform="linux")
        capsys.readouterr()
        install.free_torchaudio_of_cuda(venv, platform="linux")
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("build", [{"cuda": "13.0"}, {"hip": "7.1"}])
    def test_gpu_build_is_left_alone(self, tmp_path, capsys, build):
        venv = make_venv(tmp_path, **build)
        install.free_torchaudio_of_cuda(venv, platform="linux")
        assert len(libraries(venv)) == 3
        assert capsys.readouterr().out == ""

    def test_other_systems_are_left_alone(self, tmp_path):
        venv = make_venv(tmp_path)
        install.free_torchaudio_of_cuda(venv, platform="darwin")
        assert len(libraries(venv)) == 3

    @pytest.mark.parametrize("linked", ["torchaudio", "torchaudio/lib"])
    def test_links_out_of_the_environment_are_not_followed(self, tmp_path, linked):
        venv = make_venv(tmp_path)
        other = make_venv(tmp_path / "elsewhere")
        link = next(venv.glob("lib/*/site-packages")) / linked
        link.rename(tmp_path / "aside")
        link.symlink_to(next(other.glob("lib/*/site-packages")) / linked)
        install.free_torchaudio_of_cuda(venv, platform="linux")
        assert len(libraries(other)) == 3

    def test_a_neighbouring_environment_is_not_touched(self, tmp_path):
        venv, neighbour = make_venv(tmp_path), make_venv(tmp_path / "neighbour")
        install.free_torchaudio_of_cuda(venv, platform="linux")
        assert len(libraries(neighbour)) == 3


class TestStamp:
    @pytest.fixture
    def project(self, tmp_path):
        for name in install.INPUTS:
            (tmp_path / name).write_text(f"the first {name}")
        venv = make_venv(tmp_path)
        (venv / install.STAMP).write_text(install.stamp_text(tmp_path))
        return tmp_path

    def is_ready(self, project, version=HERE, chosen=False):
        return install.is_ready(project / ".venv", install.stamp_text(project), version, chosen)

    def reason(self, project, version=HERE, chosen=False):
        return install.rebuild_reason(project / ".venv", version, chosen)

    def test_nothing_to_do_when_nothing_changed(self, project):
        assert self.is_ready(project)

    @pytest.mark.parametrize("name", install.INPUTS)
    def test_a_changed_input_installs_again_in_place(self, project, name):
        (project / name).write_text("changed")
        assert not self.is_ready(project)
        assert self.reason(project) == ""

    def test_no_stamp_installs_in_place(self, project):
        (project / ".venv" / install.STAMP).unlink()
        assert not self.is_ready(project)
        assert self.reason(project) == ""

    def test_a_killed_install_is_rebuilt(self, project):
        (project / ".venv" / install.MARK).touch()
        assert not self.is_ready(project)
        assert "interrupted" in self.reason(project)

    def test_a_vanished_python_is_rebuilt(self, project):
        python = project / ".venv" / "bin" / "python"
        python.unlink()
        python.symlink_to("/no/such/python")
        assert not self.is_ready(project)
        assert "gone" in self.reason(project)

    def test_a_moved_folder_is_rebuilt(self, project, tmp_path_factory):
        moved = project.rename(tmp_path_factory.mktemp("other") / "project")
        assert not self.is_ready(moved)
        assert "another folder" in self.reason(moved)

    def test_another_version_is_rebuilt_only_when_chosen(self, project):
        newer = (HERE[0], HERE[1] + 1)
        assert self.is_ready(project, version=newer)
        assert not self.is_ready(project, version=newer, chosen=True)
        assert self.is_ready(project, chosen=True)

    def test_a_folder_without_environment_has_no_reason(self, tmp_path):
        assert install.rebuild_reason(tmp_path / ".venv", HERE, True) == ""

    def test_emptying_keeps_the_mark_and_what_links_point_at(self, project, monkeypatch):
        """A kill while emptying must be noticed by the next run, so the mark outlives everything else."""
        outside = project / "corpora"
        outside.mkdir()
        (outside / "speech.flac").touch()
        (project / ".venv" / "lib64").symlink_to(outside)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
        install.create(project / ".venv", "a reason")
        assert [path.name for path in (project / ".venv").iterdir()] == [install.MARK]
        assert (outside / "speech.flac").exists()


class TestLinkedEnvironment:
    @pytest.fixture
    def linked(self, tmp_path):
        """A project whose .venv is a link to that of another, stamped by it."""
        venv = make_venv(tmp_path / "other")
        (venv / install.STAMP).write_text(f"digest\n{tmp_path / 'other'}\n")
        project = tmp_path / "project"
        project.mkdir()
        for name in ("requirements.lock", "pyproject.toml"):
            (project / name).write_text((ROOT / name).read_text())
        (project / ".venv").symlink_to(venv)
        return project

    def test_what_another_folder_made_is_borrowed_as_it_is(self, linked, monkeypatch, capsys):
        before = sorted(linked.parent.rglob("*"))
        monkeypatch.setattr(install, "ROOT", linked)
        monkeypatch.setattr(install, "VENV", linked / ".venv")
        install.main()
        assert str(linked.parent / "other") in capsys.readouterr().out
        assert sorted(linked.parent.rglob("*")) == before

    def test_a_link_to_nothing_is_one_line(self, linked):
        (linked.parent / "other" / ".venv").rename(linked.parent / "gone")
        with pytest.raises(SystemExit, match="which isn't there: remove the link"):
            install.install(linked, linked / ".venv", "", chosen=False)

    def test_a_broken_one_is_never_emptied(self, linked):
        other = linked.parent / "other" / ".venv"
        (other / install.MARK).touch()
        (other / install.STAMP).unlink()
        with pytest.raises(SystemExit, match=f"link to {other}.*interrupted"):
            install.install(linked, linked / ".venv", "", False)
        assert (other / "bin" / "python").exists()

    def test_our_own_on_another_disk_is_ours(self, linked):
        (linked / ".venv" / install.STAMP).write_text(f"digest\n{linked}\n")
        assert install.lender(linked / ".venv") == ""
        (linked / ".venv" / install.STAMP).unlink()
        assert install.lender(linked / ".venv") == ""


class TestFailure:
    def fail(self, tmp_path, code):
        venv = tmp_path / ".venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        (venv / install.MARK).touch()
        with pytest.raises(SystemExit) as stop:
            install.run(venv, "-c", code, quiet=True)
        assert "online" in str(stop.value)
        assert "\n" not in str(stop.value)
        return (venv / install.MARK).exists()

    def test_pips_message_is_shown_and_the_next_run_goes_on(self, tmp_path, capsys):
        assert not self.fail(tmp_path, "raise SystemExit('no route to host')")
        assert "no route to host" in capsys.readouterr().out

    def test_a_killed_pip_leaves_the_mark(self, tmp_path):
        assert self.fail(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


class TestPythonVersion:
    @pytest.mark.parametrize("version", [(3, 11), (3, 11, 2), (3, 14, 0)])
    def test_new_enough(self, version):
        assert install.python_problem(version) == ""

    @pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 8), (3, 10, 14)])
    def test_too_old_is_one_clear_line(self, version):
        problem = install.python_problem(version)
        assert f"Python {version[0]}.{version[1]} is too old" in problem
        assert "PYTHON=" in problem
        assert "\n" not in problem

    def test_an_old_python_can_parse_the_installer(self):
        ast.parse((ROOT / "install.py").read_text(), feature_version=(3, 6))

    def test_the_same_bound_as_the_project(self):
        assert PROJECT["project"]["requires-python"] == ">={}.{}".format(*install.OLDEST)


class TestLock:
    blocks = install.locked_blocks(LOCK)

    def test_every_package_is_pinned_and_hashed(self):
        assert len(self.blocks) > 50
        for name, block in self.blocks.items():
            pin, *rest = block.replace("\\\n", "").splitlines()
            requirement, *hashes = re.split(r"\s+--hash=", pin.strip())
            assert re.fullmatch(r"==[^*,]+", str(Requirement(requirement).specifier)), name
            assert hashes, name
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name
            assert all(not line or line.lstrip().startswith("#") for line in rest), name

    def test_torch_and_what_only_its_cuda_build_needs_stay_out(self):
        assert not [name for name in self.blocks if re.fullmatch(r"torch|triton|cuda-.*|nvidia-.*", name)]

    def test_every_direct_dependency_is_in_the_lock_within_its_range(self):
        project = PROJECT["project"]
        groups = [project["dependencies"], *project["optional-dependencies"].values()]
        for requirement in map(Requirement, itertools.chain(*groups)):
            name = canonicalize_name(requirement.name)
            if name in ("torch", "triton", project["name"]):
                continue
            assert name in self.blocks, f"{name} is missing: make lock"
            locked = re.match(r"\S+==(\S+)", self.blocks[name])
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


def test_the_build_lists_every_package():
    folders = {path.parent for path in (ROOT / "src").glob("*/**/*.py")}
    found = {".".join(folder.relative_to(ROOT / "src").parts) for folder in folders}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])
