"""Builds the kernels for CPUs with the system's compiler, once, and trusts what has computed in a child process."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from inferflux.config.logs import get_logger

log = get_logger("torch")

FOLDER = Path(__file__).with_name("kernels")
SOURCE = FOLDER / "kernels.cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi")
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
"""What the kernels can use of an x86 processor, as Linux calls it. Never -march=native: it may name what the compiler
gets wrong."""
BUILD_TIMEOUT_S, CHECK_TIMEOUT_S = 120.0, 20.0
CHECK = "import ctypes, sys; sys.exit(not ctypes.CDLL(sys.argv[1]).inferflux_check())"


_building = threading.Lock()
_failed: set[Path] = set()


def load_kernels(environ: Mapping[str, str] = os.environ) -> ctypes.CDLL | None:
    """The library, built now or taken from the cache; None when there is no compiler or nothing that it makes runs."""
    path = _built(environ)
    return None if path is None else ctypes.CDLL(str(path))


def build_ahead() -> None:
    """Compile what is not in the cache while the process does something else. It is not loaded: torch has to bring its
    OpenMP first."""
    threading.Thread(target=_built, args=(os.environ,), name="kernels", daemon=True).start()


def _built(environ: Mapping[str, str]) -> Path | None:
    compiler = _compiler(environ)
    if compiler is None:
        log.warning("no C++ compiler: plain torch computes, which is slower", wanted=", ".join(COMPILERS))
        return None
    command = [*compiler, *FLAGS, *_processor_flags()]
    path = _cache(environ) / "kernels" / f"{_digest(command)}.so"
    with _building:
        if not path.exists() and (path in _failed or not _build(command, path)):
            _failed.add(path)
            return None
    return path


def _compiler(environ: Mapping[str, str]) -> list[str] | None:
    chosen = environ.get("CXX")
    if chosen:
        return shlex.split(chosen)
    return next(([found] for name in COMPILERS if (found := shutil.which(name, path=environ.get("PATH")))), None)


def _processor_flags() -> list[str]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    known = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    flags = [f"-m{feature.replace('_', '')}" for feature in FEATURES if feature in known]
    return [*flags, "-mprefer-vector-width=512"] if "avx512f" in known else flags


def _digest(command: list[str]) -> str:
    digest = hashlib.blake2b(shlex.join(command).encode(), digest_size=16)
    for path in sorted(FOLDER.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cache(environ: Mapping[str, str]) -> Path:
    for name, folder in (("INFERFLUX_CACHE_DIR", ""), ("XDG_CACHE_HOME", "inferflux"), ("HOME", ".cache/inferflux")):
        if environ.get(name):
            return Path(environ[name], folder)
    return Path(tempfile.gettempdir(), f"inferflux-{os.getuid()}")


def _build(command: list[str], path: Path) -> bool:
    """Compile to a name of this process's own, check it, and move it to `path`: two workers may start at once."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _run([*command, str(SOURCE), "-o", str(draft)], BUILD_TIMEOUT_S)
        _run([sys.executable, "-I", "-c", CHECK, str(draft)], CHECK_TIMEOUT_S)
        draft.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("kernels cannot be built: plain torch computes, which is slower", reason=_explain(error))
        draft.unlink(missing_ok=True)
        return False
    log.info("kernels built", path=str(path))
    return True


def _run(command: list[str], timeout_s: float) -> None:
    subprocess.run(command, check=True, timeout=timeout_s, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _explain(error: Exception) -> str:
    output = getattr(error, "output", None)
    return f"{error}: {output.strip()[-500:]}" if output else str(error)
