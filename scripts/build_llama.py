"""Builds llama-cpp-python for the processor at hand and proves it before anybody trusts it.

The library is compiled from its source package with flags chosen from the processor, kept in a cache, installed
into the environment of the Python that runs this script, and made to decode a token in a child process. When the
child dies (an illegal instruction, as a rule) the next smaller set of flags is tried.

Exit status: 0 when a proven library is installed, 1 when llama.cpp cannot be had here; the reason has been printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llama_ladder import Rung, cache_key, find_processor, ladder

VERSION = "0.3.36"
SOURCE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

ONLY_LLAMA = (
    "-DLLAVA_BUILD=OFF",
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={Path(__file__).resolve().with_name('llama_only.cmake')}",
)
BUILD_MEMORY = 1024**3
CHILD_TIMEOUT_S = 180.0


class Unavailable(Exception):
    """llama.cpp cannot be had on this machine now; the message says why and what helps."""


class BuildFailed(Exception):
    """This set of flags does not compile here."""


def find_compiler() -> tuple[list[str], str]:
    """The C++ compiler's command and its version line. Raises Unavailable, naming what to install."""
    for candidate in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return command, done.stdout.splitlines()[0]
    raise Unavailable(
        "no C++ compiler was found; install one and start again. Debian, Ubuntu: build-essential; "
        "Fedora: gcc-c++; Alpine: build-base; Arch: base-devel; macOS: xcode-select --install"
    )


def accepts_flags(compiler: list[str], flags: tuple[str, ...]) -> bool:
    command = [*compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def num_build_jobs() -> int:
    """One job for each core, as long as each has a gigabyte."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(num_cores, memory // BUILD_MEMORY))


def pip(*args: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run pip, giving its output line by line. Raises CalledProcessError at the end of a failed run."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env
    ) as child:
        assert child.stdout is not None
        yield from child.stdout
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)


def fetch_source(cache: Path) -> Path:
    """The source package, from the cache or the package index, with the right digest. Raises Unavailable."""
    name = f"llama_cpp_python-{VERSION}.tar.gz"
    target = cache / "sources" / name
    if not target.exists():
        say(f"fetching the source of llama-cpp-python {VERSION} (77 MB)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            lines: list[str] = []
            # pip is told about this package alone: its build requirements may come as wheels.
            only_source = ("--no-deps", "--no-binary", "llama-cpp-python")
            try:
                lines.extend(pip("download", *only_source, "--dest", folder, f"llama-cpp-python=={VERSION}"))
            except subprocess.CalledProcessError as error:
                raise Unavailable("its source could not be fetched:\n" + "".join(lines[-5:])) from error
            os.replace(Path(folder, name), target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        target.unlink()
        raise Unavailable(f"{target} had sha256 {digest}, not {SOURCE_SHA256}; it was removed, start again")
    return target


def build(source: Path, rung: Rung, extra_args: str, folder: Path) -> Path:
    """Compile a wheel into `folder`. Raises BuildFailed; the compiler's output stays in build.log."""
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "build.log"
    env = os.environ | {
        "CMAKE_ARGS": f"{shlex.join((*rung.cmake_args, *ONLY_LLAMA))} {extra_args}".strip(),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(num_build_jobs()),
    }
    say(f"compiling llama.cpp ({rung.name}: {' '.join(rung.cmake_args)}); this takes minutes, once for each machine")
    args = ("wheel", "--verbose", "--no-deps", "--no-cache-dir")
    start, next_percent = time.monotonic(), 10
    with log_path.open("w") as log, tempfile.TemporaryDirectory(dir=folder) as output:
        try:
            for line in pip(*args, "--wheel-dir", output, str(source), env=env):
                log.write(line)
                step = re.search(r"\[(\d+)/(\d+)\]", line)
                percent = 100 * int(step[1]) // int(step[2]) if step else 0
                if percent >= next_percent:
                    say(f"  {percent} % after {time.monotonic() - start:.0f} s")
                    next_percent = percent // 10 * 10 + 10
        except subprocess.CalledProcessError as error:
            raise BuildFailed(f"the {rung.name} build failed; the compiler's output is in {log_path}") from error
        built = next(Path(output).glob("*.whl"))
        wheel = folder / built.name
        os.replace(built, wheel)
    return wheel


def install(wheel: Path) -> None:
    """Install the wheel over any other build of the same version, with what it needs."""
    for args in (("--force-reinstall", "--no-deps", str(wheel)), (f"llama-cpp-python=={VERSION}",)):
        lines: list[str] = []
        try:
            lines.extend(pip("install", "--progress-bar", "off", *args))
        except subprocess.CalledProcessError as error:
            raise Unavailable("pip could not install it:\n" + "".join(lines[-5:])) from error


def prove(model: Path) -> str | None:
    """Decode with the installed library in a child process; None when that works, else what went wrong."""
    command = [sys.executable, str(Path(__file__).resolve()), "--decode", str(model)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"it decoded nothing in {CHILD_TIMEOUT_S:.0f} s"
    if child.returncode < 0:
        return f"it died by {signal.Signals(-child.returncode).name}"
    if child.returncode:
        return child.stderr.strip().splitlines()[-1] if child.stderr.strip() else f"exit status {child.returncode}"
    return None


def decode(model: Path) -> None:
    """The child's work: a prompt of several tokens, then one more token, with finite logits both times."""
    import llama_cpp
    import numpy as np

    llm = llama_cpp.Llama(model_path=str(model), n_ctx=64, n_batch=64, verbose=False)
    for tokens in (llm.tokenize(b"The quick brown fox jumps over the lazy dog"), [llm.token_eos()]):
        llm.eval(tokens)
        logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        if not np.isfinite(np.ctypeslib.as_array(logits, shape=(llm.n_vocab(),))).all():
            raise SystemExit("it computed logits that are not finite")


def provide(cache: Path, model: Path) -> None:
    """Install the best build that works here. Raises Unavailable when none does."""
    compiler, version = find_compiler()
    processor = find_processor()
    extra_args = os.environ.get("CMAKE_ARGS", "")
    for rung in ladder(processor, lambda flags: accepts_flags(compiler, flags)):
        folder = cache / "llama-cpp" / cache_key(VERSION, rung, processor, version, extra_args)
        wheel = next(folder.glob("*.whl"), None)
        refused = folder / "failed"
        if refused.exists():
            say(f"the {rung.name} build failed here before (remove {folder} to try it again)")
            continue
        try:
            install(wheel or build(fetch_source(cache), rung, extra_args, folder))
        except BuildFailed as error:
            say(str(error))
            refused.touch()
            continue
        problem = prove(model)
        if problem is None:
            say(f"llama.cpp works ({rung.name} build, {version})")
            return
        say(f"the {rung.name} build cannot be used: {problem}")
        list(pip("uninstall", "--yes", "llama-cpp-python"))
    raise Unavailable("no build of it works on this machine")


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder that keeps sources and wheels")
    parser.add_argument("--model", type=Path, help="a small GGUF to prove the build with")
    parser.add_argument("--decode", type=Path, metavar="GGUF", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        decode(args.decode)
        return 0
    if not (args.cache and args.model):
        parser.error("--cache and --model are required")
    try:
        if not args.model.is_file():
            raise Unavailable(f"there is no model at {args.model} to prove a build with")
        provide(args.cache, args.model)
    except Unavailable as error:
        say(f"llama.cpp is not available: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
