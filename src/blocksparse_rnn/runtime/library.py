"""The native library: compiled on first use for this machine's processor, cached, loaded through ctypes.

BSR_NATIVE=0 turns it off; BSR_VARIANT=avx2 (avx512, avx2, portable) chooses the instruction set. Without a library
everything runs in torch, more slowly, with the same results.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from ctypes import c_double, c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import NamedTuple

from blocksparse_rnn.errors import UserError

_SOURCES = ("bsr.cpp", "gradients.hpp", "kernels.hpp", "peaks.hpp", "threads.hpp")
_COMMON = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
_SIGNATURES = {
    "bsr_create": ([c_int, c_int, c_int, c_int, *[c_void_p] * 4], c_void_p),
    "bsr_free": ([c_void_p], None),
    "bsr_product": ([c_void_p, c_int, c_long, c_void_p, c_void_p], c_int),
    "bsr_gru": ([*[c_void_p] * 3, c_int, c_int, *[c_void_p] * 4], c_int),
    "bsr_rnn": ([*[c_void_p] * 4, c_int, c_int, *[c_void_p] * 3], c_int),
    "bsr_gradient": ([c_void_p, c_int, c_long, *[c_void_p] * 3], c_int),
    "bsr_multiply_rounds": ([c_int, c_long], c_double),
    "bsr_read_rounds": ([c_void_p, c_long, c_long], c_float),
}


class Variant(NamedTuple):
    """An instruction set to compile the kernels for."""

    lanes: int
    """Floats in a vector register."""
    needs: frozenset[str]
    """Processor flags that it requires, as in /proc/cpuinfo."""
    flags: tuple[str, ...]


VARIANTS = {
    "avx512": Variant(
        16,
        frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"}),
        ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    ),
    "avx2": Variant(8, frozenset({"avx2", "fma"}), ("-mavx2", "-mfma")),
    "portable": Variant(4, frozenset(), ()),
}
_DAMAGED = (OSError, AttributeError)
"""Exceptions from loading a missing or damaged library."""
_EXTRAS = {"avx512_bf16": "-mavx512bf16", "avx512_vnni": "-mavx512vnni"}
"""Instructions that avx512 uses where the processor has them."""


@functools.cache
def native() -> ctypes.CDLL | None:
    """The library, compiled if it isn't cached; None without one, with the reason on stderr."""
    if os.environ.get("BSR_NATIVE") == "0":
        return None
    try:
        return load(choose_variant())
    except UserError as error:
        print(f"{error}; continuing in torch, more slowly", file=sys.stderr)
        return None


def choose_variant() -> str:
    """The variant that BSR_VARIANT names, or the widest that this processor runs.

    Raises:
        UserError: BSR_VARIANT is unknown, or the processor can't run it.
    """
    abilities = _processor_abilities()
    possible = [name for name, variant in VARIANTS.items() if variant.needs <= abilities]
    wanted = os.environ.get("BSR_VARIANT", possible[0])
    if wanted not in possible:
        raise UserError(
            f"BSR_VARIANT={wanted}: this processor runs {', '.join(possible)}; choose one of them"
        )
    return wanted


def load(variant: str) -> ctypes.CDLL:
    """Load a variant, compiled unless it is cached.

    Without a compiler, the newest cached library of this source is loaded, whichever compiler made it.

    Raises:
        UserError: no compiler, or it fails; no folder into which it can write and from which code can be loaded.
    """
    folder, flags, cache = Path(__file__).parent / "cpp", _flags(variant), cache_folder()
    source = b"".join((folder / name).read_bytes() for name in _SOURCES)
    stem = f"bsr-{variant}-{_digest(source + repr(flags).encode())}"
    try:
        compiler = _compiler()
        name = f"{stem}-{_digest(_version(compiler).encode())}.so"
    except UserError:
        for path in sorted(cache.glob(f"{stem}-*.so"), key=lambda path: path.stat().st_mtime, reverse=True):
            with suppress(*_DAMAGED):
                return _open(path)
        raise
    command = [*compiler, *flags, str(folder / "bsr.cpp"), "-o"]
    with suppress(*_DAMAGED):
        return _open(cache / name)  # before the lock, which a read-only cache doesn't have
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process compiles, the others wait
            return _from_cache(cache / name, command)
    try:  # a cache that is read-only or mounted noexec: compile for this process only
        with tempfile.TemporaryDirectory() as temporary:
            return _open(_compile(Path(temporary) / name, command))
    except OSError as error:
        raise UserError(
            f"runtime: no folder to compile into and load from ({error}); set XDG_CACHE_HOME to one that is "
            "writable and not mounted noexec"
        ) from None


def cache_folder() -> Path:
    """The folder of compiled libraries.

    Raises:
        UserError: XDG_CACHE_HOME is not set, and the user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError(f"runtime: no cache folder ({error}); set XDG_CACHE_HOME") from None
    return Path(base) / "blocksparse-rnn"


def _from_cache(path: Path, command: list[str]) -> ctypes.CDLL:
    if path.is_file():
        try:
            return _open(path)
        except _DAMAGED:
            path.unlink()
    return _open(_compile(path, command))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _compile(path: Path, command: list[str]) -> Path:
    print("runtime: compiling for this processor (a few seconds, once) ...", file=sys.stderr, flush=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        done = subprocess.run([*command, str(temporary)], capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise UserError(f"runtime: {command[0]} failed: {(lines or ['it printed no message'])[0]}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def _flags(variant: str) -> tuple[str, ...]:
    lanes, _, flags = VARIANTS[variant]
    if lanes == 16:
        flags += tuple(flag for name, flag in _EXTRAS.items() if name in _processor_abilities())
    return (*_COMMON, f"-DLANES={lanes}", *flags)


def _compiler() -> list[str]:
    """The command in CXX, with its arguments, or the first compiler that is installed."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise UserError(f"runtime: CXX={os.environ['CXX']}: {error}") from None
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not named and not found:
        raise UserError("runtime: no C++ compiler found; install g++ or set CXX")
    return named or [str(found)]


def _version(compiler: list[str]) -> str:
    command = [*compiler, "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"runtime: {compiler[0]} does not run ({error}); install g++ or set CXX") from None


@functools.cache
def _processor_abilities() -> frozenset[str]:
    """The flags in /proc/cpuinfo; none on other systems, which run `portable`."""
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return frozenset(next(line for line in lines if line.startswith("flags")).split(":")[1].split())
    except (OSError, StopIteration):
        return frozenset()
