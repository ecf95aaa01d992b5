"""The control plane: models, tenants and their keys.

May import `inferflux.config` and `inferflux.broker`.
"""
