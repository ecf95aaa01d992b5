"""Everything that crosses a process: wire structs, subjects, errors, streams, lanes and fair share.

May import `inferflux.config` and nothing else of InferFlux.
"""
