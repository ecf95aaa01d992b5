"""`inferctl`: serve models, talk to them, and see what is wrong."""

from __future__ import annotations

import sys

import typer

from inferflux.config.errors import ConfigError, InferFluxError

from . import admin, audit, batch, queue
from .backup import backup, restore
from .chat import chat
from .completion import completion
from .configuration import config
from .doctor import doctor
from .fleet import fleet
from .models import models
from .pull import pull
from .serve import api, serve, worker
from .status import status
from .top import top

_SERVE = "Serve"
_TALK = "Talk to a server"
_OPERATE = "Look after a fleet"
_CARE = "Set up"

app = typer.Typer(
    name="inferctl",
    help="Serve language models, talk to them, and see what is wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command, panel in (
    (serve, _SERVE),
    (api, _SERVE),
    (worker, _SERVE),
    (completion, _TALK),
    (chat, _TALK),
    (models, _TALK),
    (status, _OPERATE),
    (fleet, _OPERATE),
    (top, _OPERATE),
    (backup, _OPERATE),
    (restore, _OPERATE),
    (doctor, _CARE),
    (pull, _CARE),
    (config, _CARE),
):
    app.command(rich_help_panel=panel)(command)
app.add_typer(batch.app, name="batch", rich_help_panel=_TALK)
app.add_typer(queue.app, name="queue", rich_help_panel=_OPERATE)
app.add_typer(admin.app, name="admin", rich_help_panel=_OPERATE)
app.add_typer(audit.app, name="audit", rich_help_panel=_OPERATE)


def main() -> None:
    """Exit 1 for what failed, 2 for wrong usage or settings, 130 for Ctrl-C; stderr says why in one line."""
    try:
        app()
    except InferFluxError as error:
        sys.stderr.write(f"inferctl: {error}\n")
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
