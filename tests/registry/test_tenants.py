from __future__ import annotations

import pytest

from inferflux.broker.errors import ConfigError
from inferflux.broker.subjects import ServiceClass
from inferflux.config.settings import AuthSettings, KeySettings, QueueSettings, Settings, TenantSettings
from inferflux.registry.tenants import Tenants


def tenants_of(*keys: KeySettings, tenants: tuple[TenantSettings, ...] = ()) -> Tenants:
    return Tenants.from_settings(Settings(auth=AuthSettings(api_keys=keys), tenants=tenants))


def test_key_acts_for_its_tenant() -> None:
    acme = TenantSettings(id="acme", weight=4, classes=("priority", "default"), max_queued=7)
    known = tenants_of(KeySettings(key="k1", tenant="acme", scopes=("read",), models=("m",)), tenants=(acme,))

    principal = known.authenticate("k1", 0.0)

    assert principal is not None
    assert principal.tenant.id == "acme"
    assert principal.tenant.weight == 4
    assert principal.tenant.classes == (ServiceClass.PRIORITY, ServiceClass.DEFAULT)
    assert principal.tenant.max_queued == 7
    assert principal.scopes == {"read"}
    assert principal.may_use("m")
    assert not principal.may_use("other")


def test_key_without_tenant_is_its_own() -> None:
    known = tenants_of(KeySettings(key="one"), KeySettings(key="two"))

    one, two = known.authenticate("one", 0.0), known.authenticate("two", 0.0)

    assert one is not None
    assert two is not None
    assert one.tenant.id != two.tenant.id
    assert "one" not in one.tenant.id
    assert one.tenant.salt != two.tenant.salt
    assert {tenant.id for tenant in known.all()} == {one.tenant.id, two.tenant.id}


def test_unknown_key_is_nobody() -> None:
    assert tenants_of(KeySettings(key="k1")).authenticate("k2", 0.0) is None
    assert tenants_of().num_keys == 0


def test_no_key_is_kept() -> None:
    known = tenants_of(KeySettings(key="very-secret-key"))

    assert "very-secret-key" not in repr(vars(known))


def test_unconfigured_tenant_has_default_rights() -> None:
    tenant = tenants_of().tenant("somebody")

    assert (tenant.id, tenant.weight) == ("somebody", 1.0)
    assert ServiceClass.PRIORITY not in tenant.classes


def test_cache_group_joins_salts() -> None:
    known = tenants_of(tenants=tuple(TenantSettings(id=name, cache_group="shared") for name in ("a", "b")))

    assert known.tenant("a").salt == known.tenant("b").salt


@pytest.mark.parametrize(("max_running", "expected"), [(None, 8), (3, 3), (20, 8)])
def test_lane_limits_take_the_smaller_bound(max_running: int | None, expected: int) -> None:
    tenant = tenants_of(tenants=(TenantSettings(id="a", max_running=max_running),)).tenant("a")

    limits = tenant.lane_limits(QueueSettings(max_running_per_lane=8, lease_s=5, lane_idle_s=60))

    assert (limits.max_running, limits.lease_s, limits.idle_s) == (expected, 5, 60)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (Settings(tenants=(TenantSettings(id="a"), TenantSettings(id="a"))), r"tenants\[1\]\.id"),
        (Settings(tenants=(TenantSettings(id=""),)), r"tenants\[0\]\.id"),
        (Settings(tenants=(TenantSettings(id="x" * 300),)), r"tenants\[0\]\.id"),
        (Settings(tenants=(TenantSettings(id="a", classes=()),)), r"tenants\[0\]\.classes"),
        (Settings(auth=AuthSettings(api_keys=(KeySettings(key=" "),))), r"auth\.api_keys\[0\]\.key"),
        (
            Settings(auth=AuthSettings(api_keys=(KeySettings(key="k"), KeySettings(key="k")))),
            r"auth\.api_keys\[1\]\.key",
        ),
    ],
)
def test_errors_name_the_place(settings: Settings, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        Tenants.from_settings(settings)
