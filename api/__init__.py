"""HTTP: routes, authentication, admission and the relay from reply frames to server-sent events.

May import `inferflux.config`, `inferflux.broker` and `inferflux.registry`; never `inferflux.workers`.
"""
