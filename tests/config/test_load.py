from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferflux.config.errors import ConfigError
from inferflux.config.knobs import BY_ENV, KNOBS
from inferflux.config.load import (
    MASK,
    SHIPPED,
    find,
    load,
    load_for_process,
    parse_assignments,
    shown,
)
from inferflux.config.settings import Settings


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(text: str) -> Path:
        path = tmp_path / "server.yaml"
        path.write_text(text)
        return path

    return _write


def fails(path: Path | None, environ: dict[str, str] | None = None, flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, flags)
    return str(caught.value)


def test_defaults_are_the_structs_own():
    loaded = load(None, {})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}


def test_flags_win_over_environment_over_file(write):
    path = write("server:\n  port: 1\n  host: file\nqueue:\n  lease_s: 2\n")
    loaded = load(path, {"INFERFLUX_SERVER_PORT": "2", "INFERFLUX_QUEUE_LEASE_S": "3"}, {"server.port": "4"})
    assert (loaded.settings.server.port, loaded.settings.server.host, loaded.settings.queue.lease_s) == (4, "file", 3.0)
    assert loaded.origins["server.port"] == "flag"
    assert loaded.origins["queue.lease_s"] == "env INFERFLUX_QUEUE_LEASE_S"
    assert loaded.origins["server.host"] == f"{path}:3"
    assert loaded.origins["server.tls_cert"] == "default"


def test_every_setting_has_a_variable_of_its_own():
    assert len(BY_ENV) == len(KNOBS)
    assert BY_ENV["INFERFLUX_MODEL_PATH"].path == "model.path"
    assert BY_ENV["INFERFLUX_RUNTIME_PAGED_KV_CPU_PAGES"].path == "runtime.paged_kv.cpu_pages"


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("INFERFLUX_MODEL_PATH", "m/llama3.gguf", "model.path", "m/llama3.gguf"),
        ("INFERFLUX_MODEL_PATH", "", "model.path", None),
        ("INFERFLUX_BROKER_PASSWORD", "123", "broker.password", "123"),
        ("INFERFLUX_BROKER_REPLICAS", "3", "broker.replicas", 3),
        ("INFERFLUX_QUEUE_LEASE_S", "2e1", "queue.lease_s", 20.0),
        ("INFERFLUX_RUNTIME_LLAMACPP_FLASH_ATTENTION", "true", "runtime.llamacpp.flash_attention", True),
        ("INFERFLUX_GUARDRAILS_BLOCKLIST", "pii, classified", "guardrails.blocklist", ("pii", "classified")),
        ("INFERFLUX_GUARDRAILS_BLOCKLIST", "['a,b', c]", "guardrails.blocklist", ("a,b", "c")),
        ("INFERFLUX_GUARDRAILS_BLOCKLIST", "", "guardrails.blocklist", ()),
    ],
)
def test_a_variable_is_read_by_its_settings_type(name, text, path, value):
    assert _at(load(None, {name: text}).settings, path) == value


def test_a_variable_may_hold_a_list_of_sections():
    settings = load(None, {"INFERFLUX_AUTH_API_KEYS": "[{key: k, tenant: t, scopes: [read]}]"}).settings
    assert settings.auth.api_keys[0].scopes == ("read",)


@pytest.mark.parametrize(
    "name", ["INFERFLUX_DIST_RANK", "INFERFLUX_POLICY_PASSPHRASE", "INFERFLUX_SUPERVISED", "INFERFLUX_TEST_MODEL"]
)
def test_variables_that_are_no_settings_are_let_be(name):
    assert load(None, {name: "x", "OTHER": "y"}).settings == Settings()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("serevr:\n  port: 1\n", 1, "serevr is no setting; did you mean server?"),
        ("server:\n  host: x\n  prt: 1\n", 3, "server.prt is no setting; did you mean server.port?"),
        ("\nqueue_timeout_s: 3\n", 2, "did you mean queue.queue_timeout_s?"),
        ("runtime:\n  paged_kv:\n    cpu_page: 1\n", 3, "did you mean runtime.paged_kv.cpu_pages?"),
        ("server:\n  port: abc\n", 2, "server.port must be a whole number, at least 0 and at most 65535, not a text"),
        ("server:\n  port: 70000\n", 2, "not 70000"),
        ("server: 3\n", 1, "server must be a mapping"),
        ("- 1\n", 1, "the settings file must be a mapping"),
        ("server:\n  port: 1\n  port: 2\n", 3, "server.port is given twice"),
        ("broker:\n  replicas: 2\n", 2, "broker.replicas must be one of 1, 3, 5, not 2"),
        ("streams:\n  resume_grace_s: .nan\n", 2, "streams.resume_grace_s must be a number, at least 0"),
        ("guardrails:\n  blocklist: [x, 1]\n", 2, "guardrails.blocklist[1] must be a string"),
        ("auth:\n  api_keys:\n    - kee: x\n", 2, "auth.api_keys[0].kee is no setting; did you mean key?"),
        ("auth:\n  api_keys:\n    - tenant: x\n", 2, "auth.api_keys[0] needs the field key"),
        ("auth:\n  api_keys:\n    - {key: x, scopes: [gen]}\n", 2, "scopes[0] must be one of admin, generate, read"),
        ("server:\n  tls_cert: x\n", 2, "server.tls_cert also needs server.tls_key"),
        ("a: [\n", 2, "not valid YAML"),
        ("server:\n  host: !!python/name:os.system x\n", 2, "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_file_line_and_key(write, text, line, says):
    path = write(text)
    message = fails(path)
    assert message.startswith(f"{path}:{line}: ")
    assert says in message


def test_wrong_variables_and_flags_are_refused_by_name():
    assert "INFERFLUX_SERVER_PORT" in fails(None, {"INFERFLUX_SERVR_PORT": "1"})
    assert fails(None, {"INFERFLUX_SERVER_PORT": "x"}).startswith("env INFERFLUX_SERVER_PORT: server.port must be")
    assert fails(None, {"INFERFLUX_QUEUE_LEASE_S": "soon"}).startswith("INFERFLUX_QUEUE_LEASE_S: queue.lease_s must be")
    assert "did you mean server.port?" in fails(None, {}, {"port": "1"})
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_assignments(["server.port"])


def test_a_secret_of_the_wrong_type_is_not_repeated(write):
    for text in ("auth:\n  api_keys:\n    - key: 12345678\n", "broker:\n  password: 12345678\n"):
        message = fails(write(text))
        assert "12345678" not in message
        assert "must be a string" in message


@pytest.mark.parametrize("missing", ["nowhere.yaml", "."])
def test_an_unreadable_file_is_named(tmp_path, missing):
    assert str(tmp_path / missing) in fails(tmp_path / missing)


def test_shown_masks_every_secret():
    environ = {
        "INFERFLUX_AUTH_API_KEYS": "[{key: sesame-1, tenant: t}]",
        "INFERFLUX_BROKER_URL": "nats://me:sesame-2@host:4222",
        "INFERFLUX_BROKER_PASSWORD": "sesame-3",
        "INFERFLUX_BROKER_STAMP_SECRET": "sesame-4",
        "INFERFLUX_BROKER_SEAL_SECRET": "sesame-5",
    }
    rows = {path: (value, origin) for path, value, origin in shown(load(None, environ))}
    assert "sesame" not in str(rows)
    assert rows["broker.url"] == (f"nats://{MASK}@host:4222", "env INFERFLUX_BROKER_URL")
    assert rows["auth.api_keys"][0][0]["tenant"] == "t"
    assert rows.keys() == KNOBS.keys()


def test_every_setting_whose_name_sounds_secret_is_masked():
    for path, knob in KNOBS.items():
        if any(word in path for word in ("password", "secret")):
            value = shown(load(None, {knob.env: "sesame-000000000"}))
            assert (path, MASK, f"env {knob.env}") in value


def test_the_shipped_settings_start_and_have_their_registry_wherever_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find(None) == SHIPPED
    loaded = load_for_process([], {}, "test")
    assert Path(loaded.settings.registry.path) == SHIPPED.parent / "registry.yaml"
    assert Path(loaded.settings.registry.path).is_file()
    assert loaded.settings.auth.api_keys[0].key == "dev-key-123"


def test_settings_of_this_folder_come_before_the_shipped_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/server.yaml").write_text("registry:\n  path: here.yaml\n")
    assert load_for_process([], {}, "test").settings.registry.path == "here.yaml"


def test_process_arguments_name_file_and_settings(write):
    path = write("server:\n  port: 1\n")
    loaded = load_for_process(["--config", str(path), "--set", "server.host=::1", "--set", "model.id=a=b"], {}, "test")
    assert (loaded.settings.server.port, loaded.settings.server.host) == (1, "::1")
    assert loaded.settings.model.id == "a=b"


def _at(settings: msgspec.Struct, path: str) -> Any:
    value: Any = settings
    for step in path.split("."):
        value = getattr(value, step)
    return value
