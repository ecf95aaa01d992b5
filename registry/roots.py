"""The roots: folders that models may be loaded from at the word of somebody far away."""

from __future__ import annotations

import os
from pathlib import Path

from inferflux.broker.errors import Code, RequestError
from inferflux.config.settings import RegistrySettings

MODELS = Path("models")


class ModelRoots:
    """What is loaded over HTTP must lie under one of these. Links in them lead where their owner wants them to."""

    def __init__(self, settings: RegistrySettings) -> None:
        given = [Path(root).expanduser() for root in settings.roots]
        self.folders = tuple(root.absolute() for root in given or (Path(settings.path).parent, MODELS))

    def find(self, path: str) -> str:
        """The absolute path of a model; a relative one is looked for in each root. Raises RequestError.

        What is not there is refused only where this machine has the root: workers elsewhere may have the file.
        """
        if not path.isprintable():
            raise _refused("the path has characters that no path of a model needs")
        inside = [Path(os.path.normpath(root / path)) for root in self.folders]
        inside = [found for found, root in zip(inside, self.folders, strict=True) if found.is_relative_to(root)]
        if not inside:
            folders = ", ".join(map(str, self.folders))
            raise _refused(f"{path[:200]!r} is in no folder that models may be loaded from (registry.roots): {folders}")
        there = [found for found in inside if found.exists()]
        if not there and any(root.is_dir() for root in self.folders):
            raise _refused(f"there is no {path[:200]!r} here, nor under {', '.join(map(str, self.folders))}")
        return str((there or inside)[0])


def _refused(message: str) -> RequestError:
    return RequestError(Code.INVALID_REQUEST, message, param="path")
