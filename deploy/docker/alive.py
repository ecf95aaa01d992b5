"""Ask the process in this container whether it lives: `python alive.py PORT`; exit status 1 when it does not."""

from __future__ import annotations

import ssl
import sys
import urllib.request

# The certificate is for the name that others know this container by, so it is not looked at.
_NO_NAMES = ssl.create_default_context()
_NO_NAMES.check_hostname = False
_NO_NAMES.verify_mode = ssl.CERT_NONE


def main() -> int:
    port = int(sys.argv[1])
    for scheme in ("http", "https"):
        try:
            with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/livez", timeout=3, context=_NO_NAMES) as answer:  # noqa: S310
                return 0 if answer.status == 200 else 1
        except OSError as error:
            print(f"{scheme}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
