"""`python -m inferflux.workers.follow`: a rank that rank 0 has started. It talks to rank 0 and to nobody else."""

from __future__ import annotations

import os
import signal
import sys
import threading

from inferflux.broker.errors import ConfigError
from inferflux.config import logs
from inferflux.config.lifeline import supervised_name
from inferflux.config.settings import LoggingSettings

from .ranks import Ranks, read_ranks

log = logs.get_logger("ranks")


def main() -> None:
    """Serve until rank 0 is gone. Signals of a terminal are rank 0's to handle."""
    logs.setup(LoggingSettings(), supervised_name(os.environ) or "rank")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()
    try:
        ranks = read_ranks(os.environ)
    except ConfigError as error:
        log.error(str(error))
        sys.exit(2)
    if ranks is None or not ranks.follows:
        log.error("this is no rank that follows another")
        sys.exit(2)
    sys.exit(follow(ranks))


def follow(ranks: Ranks) -> int:
    """The exit status: 1, because a rank computes until it is ended or rank 0 is gone."""
    from .backends.torch_engine.follower import follow as follow_rank

    try:
        follow_rank(ranks)
    except (ConfigError, RuntimeError) as error:
        log.error("this rank ends", rank=ranks.rank, reason=str(error).partition("\n")[0])
    return 1


def _end_with_parent() -> None:
    """The other end of stdin is rank 0. A collective that waits for ever cannot be interrupted otherwise."""
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
