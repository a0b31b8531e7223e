"""Makes .venv ready: every make target runs this first, and it does nothing when nothing has changed.

python3 install.py
PYTHON=python3.12 make demo     # chooses the interpreter; an environment of another version is rebuilt

Standard library only, and written so that an old Python can parse it and be told that it is too old.
"""

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
INPUTS = ["requirements.lock", "pyproject.toml", "install.py"]
OLDEST = (3, 11)
STAMP = "installed"  # in .venv: what the finished install was made from
MARK = "installing"  # in .venv while packages change, so that a killed install is noticed
PIP = ["-m", "pip", "install"]
PIP_LOCKED = [*PIP, "--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517", "--requirement"]


def python_problem(version: tuple) -> str:
    """Say in one line why this Python won't do; empty if it will."""
    if tuple(version[:2]) >= OLDEST:
        return ""
    found, needed = ("{}.{}".format(*pair[:2]) for pair in (version, OLDEST))
    return (
        f"Python {found} is too old, {needed} or newer is needed: name one, as in PYTHON=python3.12 make demo"
    )


def stamp_text(root: Path) -> str:
    """Sum up what an install depends on: the inputs, and the folder, whose path the scripts in .venv hold."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((root / name).read_bytes() + b"\0")
    return f"{digest.hexdigest()}\n{root}\n"


def rebuild_reason(venv: Path, version: tuple, chosen: bool) -> str:
    """Say why an environment that is there can't be kept; empty if it can, or if there is none.

    `version` is that of the running Python; it counts only where the user chose it.
    """
    if not venv.exists():
        return ""
    if (venv / MARK).exists():
        return "the last install was interrupted"
    if not (venv / "bin" / "python").exists() or not (venv / "pyvenv.cfg").exists():
        return "its Python is gone"
    held = re.search(r"^version\w* *= *(\d+)\.(\d+)", (venv / "pyvenv.cfg").read_text(), re.MULTILINE)
    if chosen and held and (int(held[1]), int(held[2])) != tuple(version[:2]):
        return f"it holds Python {held[1]}.{held[2]}, and PYTHON names a {version[0]}.{version[1]}"
    stamp = venv / STAMP
    if stamp.exists() and stamp.read_text().splitlines()[1:] != [str(venv.parent)]:
        return "it was made in another folder"
    return ""


def lender(venv: Path) -> str:
    """Name the folder whose environment a link borrows; empty if .venv is our own, wherever it lies."""
    stamp = venv / STAMP
    if not venv.is_symlink() or not stamp.exists():
        return ""
    made_in = "".join(stamp.read_text().splitlines()[1:])
    return "" if made_in == str(venv.parent) else made_in


def is_ready(venv: Path, wanted: str, version: tuple, chosen: bool) -> bool:
    """Tell whether the last install finished with today's inputs and its environment can be kept."""
    stamp = venv / STAMP
    return stamp.exists() and stamp.read_text() == wanted and not rebuild_reason(venv, version, chosen)


def locked_blocks(lock_text: str) -> dict:
    """Split a lock by package name into blocks of `name==version` and its hashes."""
    blocks = re.split(r"^(?=[a-z0-9])", lock_text, flags=re.MULTILINE)[1:]
    return {block.split("==")[0]: block for block in blocks}


def is_cpu_build(site: Path) -> bool:
    """Read from its version file whether the torch in this site-packages folder was built without CUDA and ROCm."""
    build = runpy.run_path(str(site / "torch" / "version.py"))
    return not build.get("cuda") and not build.get("hip")


def free_torchaudio_of_cuda(venv: Path, platform: str = sys.platform) -> None:
    """Remove torchaudio's compiled libraries from beside a CPU build of torch.

    torchaudio's published Linux wheel links them against CUDA, and without CUDA `import torchaudio` fails. It
    provides for their absence: then it runs on its Python parts, all that we use. Beside a CUDA torch they stay.
    """
    for site in (venv / "lib").glob("python3*/site-packages"):
        folder = site / "torchaudio" / "lib"
        inside = venv.resolve() in folder.resolve().parents
        libraries = list(folder.glob("*.so"))
        if libraries and inside and platform.startswith("linux") and is_cpu_build(site):
            for library in libraries:
                library.unlink()
            print(f"torch is a CPU build: removed {len(libraries)} CUDA libraries of torchaudio, unused here")


def run(venv: Path, *arguments: str, quiet: bool = False, count_to: int = 0) -> None:
    """Run the environment's Python, and end the install if that fails.

    A quiet run shows its last lines only if it fails; with `count_to`, pip's packages are counted on one line.
    """
    command = [str(venv / "bin" / "python"), *arguments]
    out, err = (subprocess.PIPE, subprocess.STDOUT) if quiet or count_to else (None, None)
    on_screen = sys.stdout.isatty()
    said = []
    seen = 0
    # Children keep the lock file open: should we be killed, the next run waits until they too have ended.
    with subprocess.Popen(command, stdout=out, stderr=err, text=True, close_fds=False) as process:
        for line in process.stdout or ():
            said.append(line)
            seen += line.startswith(("Collecting ", "Processing ", "Requirement already ", "Ignoring "))
            if count_to and on_screen:
                print(f"\r      {min(seen, count_to)}/{count_to}", end="", flush=True)
    if count_to and on_screen:
        print()
    if process.returncode:
        print("".join(said[-12:]), end="", flush=True)
        # If it gave up by itself, .venv is whole and the next run goes on; if it was killed, perhaps not.
        if process.returncode > 0:
            (venv / MARK).unlink()
        sys.exit("The install stopped, see above. Is this machine online? To start anew: rm -rf .venv")


def create(venv: Path, reason: str) -> None:
    """Make an empty environment where there is none, or in place of one that can't be kept."""
    venv.mkdir(exist_ok=True)
    (venv / MARK).touch()  # first, so that a kill at any later moment is noticed
    if reason:
        print(f"Rebuilding .venv: {reason}", flush=True)
        for old in venv.iterdir():
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            elif old.name != MARK:
                old.unlink()
    # The base Python: the running one may be the very environment that was just emptied.
    base = getattr(sys, "_base_executable", sys.executable)
    if subprocess.run([base, "-m", "venv", str(venv)], close_fds=False).returncode:
        sys.exit("Could not create .venv. On Debian or Ubuntu, first: apt-get install python3-venv")


def install(root: Path, venv: Path, wanted: str, chosen: bool) -> None:
    """Bring .venv to what the lock says: torch first and alone, then the lock, then this project."""
    import tomllib

    # The user's pip settings say where packages come from, but not that they go elsewhere than into .venv.
    os.environ.update(PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    os.environ.pop("PIP_TARGET", None)
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]
    torch = next(pin for pin in settings["constraint-dependencies"] if pin.startswith("torch=="))
    lock = root / "requirements.lock"
    blocks = locked_blocks(lock.read_text())

    reason = rebuild_reason(venv, sys.version_info, chosen)
    if venv.is_symlink() and not venv.exists():
        sys.exit(f".venv is a link to {venv.resolve()}, which isn't there: remove the link")
    if reason and venv.is_symlink():  # others may use it at this moment
        sys.exit(f".venv is a link to {venv.resolve()}, and {reason}: mend it there, or remove the link")
    if reason or not venv.exists():
        create(venv, reason)
    (venv / MARK).touch()
    (venv / STAMP).unlink(missing_ok=True)

    print(f"[1/3] {torch}", flush=True)
    run(venv, *PIP, "--no-deps", torch)
    print(f"[2/3] {len(blocks)} packages of requirements.lock", flush=True)
    first = venv / "setuptools.lock"  # needed already installed by the packages that come as source
    first.write_text(blocks["setuptools"])
    run(venv, *PIP_LOCKED, str(first), quiet=True)
    run(venv, *PIP_LOCKED, str(lock), count_to=len(blocks))
    print("[3/3] what this build of torch brings, and this project", flush=True)
    site = next((venv / "lib").glob("python3*/site-packages"))
    run(venv, *PIP, torch, quiet=is_cpu_build(site))
    run(venv, *PIP, "--no-deps", "--no-build-isolation", "--editable", str(root), quiet=True)

    free_torchaudio_of_cuda(venv)
    # Only shown: packages that someone else put there may be at odds, and ours still work.
    check = [str(venv / "bin" / "python"), "-m", "pip", "check"]
    complaints = subprocess.run(check, capture_output=True, text=True)
    if complaints.returncode:
        print(complaints.stdout, end="")
    run(venv, "-c", "import torch, torchaudio")
    (venv / STAMP).write_text(wanted)
    (venv / MARK).unlink()


def main() -> None:
    """Install if anything has changed, one process at a time: two terminals may start with make together."""
    problem = python_problem(sys.version_info)
    if problem:
        sys.exit(problem)
    other = lender(VENV)
    if other:
        print(f".venv is a link to the environment of {other}, which stays as it is", flush=True)
        return
    chosen = bool(os.environ.get("PYTHON"))
    wanted = stamp_text(ROOT)
    if is_ready(VENV, wanted, sys.version_info, chosen):
        return
    import fcntl

    with Path(__file__).open("a") as lock:  # nothing is written; it is a file that is always there to lock
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another install in this folder", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        if not is_ready(VENV, wanted, sys.version_info, chosen):
            install(ROOT, VENV, wanted, chosen)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the next run starts the install again")
