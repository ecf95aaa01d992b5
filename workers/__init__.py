"""A worker process: it pulls prompts, runs the engine and writes the tape.

May import `inferflux.config`, `inferflux.broker` and `inferflux.registry`; never `inferflux.api`.
"""
