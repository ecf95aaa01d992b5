"""The control plane: models, tenants and their keys, fairness that changes while running, dead letters, the fleet.

May import `inferflux.config` and `inferflux.broker`.
"""
