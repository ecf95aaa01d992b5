"""What machines are told: Terraform's modules, cloud-init, systemd units and the rotation of logs."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.checkout import ROOT, text

from inferflux.config import load
from inferflux.config.settings import ServerSettings, WorkerSettings

TERRAFORM = ROOT / "deploy" / "terraform"
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def terraform(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    binary = shutil.which("terraform")
    if binary is None:
        pytest.skip("terraform is not installed")
    return subprocess.run([binary, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_terraform_is_formatted() -> None:
    done = terraform("fmt", "-check", "-recursive", "-no-color", folder=TERRAFORM)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("module", [".", "modules/cloud-init", "modules/kubernetes"])
def test_terraform_is_valid(tmp_path: Path, module: str) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets", ".terraform*"))
    folder = tmp_path / "deploy" / "terraform" / module
    made = terraform("init", "-backend=false", "-no-color", folder=folder)
    if made.returncode and re.search(r"no such host|could not connect|Failed to query available", made.stderr):
        pytest.skip("a provider is not there: reach its registry, or TF_CLI_ARGS_init=-plugin-dir=FOLDER")
    assert made.returncode == 0, made.stderr
    done = terraform("validate", "-no-color", folder=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def user_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the provider-neutral module makes for three nodes, an API replica and a worker."""
    where = tmp_path_factory.mktemp("machines")
    nodes = {f"nats-{number}": f"10.20.{number}.11" for number in (1, 2, 3)}
    prepare = [sys.executable, ROOT / "deploy" / "nats" / "prepare.py", "--out", where / "secrets"]
    prepare += [f"--node={name}={address}" for name, address in nodes.items()]
    subprocess.run(prepare, check=True, timeout=60)
    shutil.copytree(ROOT / "deploy", where / "deploy", ignore=shutil.ignore_patterns("secrets", ".terraform*"))
    folder = where / "deploy" / "terraform" / "modules" / "cloud-init"
    variables = {
        "secrets_dir": str(where / "secrets"),
        "nodes": nodes,
        "settings": {"queue": {"queue_timeout_s": 300}},
        "models": [{"id": "m", "path": "/var/lib/inferflux/models/m.gguf", "default": True}],
        "model_commands": ["install -d -o inferflux /var/lib/inferflux/models"],
    }
    (folder / "test.auto.tfvars.json").write_text(json.dumps(variables))
    assert terraform("init", "-no-color", folder=folder).returncode == 0
    applied = terraform("apply", "-auto-approve", "-no-color", folder=folder)
    assert applied.returncode == 0, applied.stderr
    outputs = json.loads(terraform("output", "-json", folder=folder).stdout)
    return {name: output["value"] for name, output in outputs.items()}


def test_the_module_for_a_cluster_reads_what_was_prepared(tmp_path: Path) -> None:
    """Its providers may be out of reach; what it makes of the folder needs none."""
    prepare = [sys.executable, ROOT / "deploy" / "nats" / "prepare.py", "--kubernetes", "prod", "--out", tmp_path / "s"]
    subprocess.run(prepare, check=True, timeout=60)
    module = text("deploy/terraform/modules/kubernetes/main.tf")
    (own,) = re.findall(r"^locals \{\n.*?^\}\n", module, re.DOTALL | re.MULTILINE)
    shutil.copy(TERRAFORM / "modules" / "kubernetes" / "variables.tf", tmp_path)
    (tmp_path / "main.tf").write_text(own + 'output "secrets" {\n  value = local.secrets\n}\n')
    (tmp_path / "a.auto.tfvars.json").write_text(json.dumps({"secrets_dir": str(tmp_path / "s"), "api_keys": []}))
    assert terraform("init", "-no-color", folder=tmp_path).returncode == 0
    applied = terraform("apply", "-auto-approve", "-no-color", folder=tmp_path)
    assert applied.returncode == 0, applied.stderr
    found = json.loads(terraform("output", "-json", folder=tmp_path).stdout)["secrets"]["value"]
    told = yaml.safe_load_all((tmp_path / "s" / "kubernetes.yaml").read_text())
    assert found == {each["metadata"]["name"]: each["stringData"] for each in told}


def files(document: str) -> dict[str, str]:
    assert document.startswith("#cloud-config\n")
    told = yaml.safe_load(document)
    return {each["path"]: b64decode(each["content"]).decode() for each in told["write_files"]}


def test_each_node_gets_its_own_key_and_the_other_nodes_addresses(user_data: dict[str, Any]) -> None:
    keys = set()
    for name, document in user_data["node"].items():
        written = files(document)
        keys.add(written["/etc/inferflux/nats/node.key"])
        environ = dict(line.split("=", 1) for line in written["/etc/inferflux/nats.env"].splitlines())
        assert environ["NATS_NAME"] == name
        assert environ["NATS_ROUTES"].count("nats://10.20.") == 2
        assert "/etc/inferflux/api.env" not in written
    assert len(keys) == 3


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_role_s_settings_are_accepted(user_data: dict[str, Any], role: str, tmp_path: Path) -> None:
    written = files(user_data[role])
    (tmp_path / "server.yaml").write_text(written["/etc/inferflux/server.yaml"])
    environ = dict(line.split("=", 1) for line in written[f"/etc/inferflux/{role}.env"].splitlines())
    settings = load.load(tmp_path / "server.yaml", environ).settings
    assert settings.queue.queue_timeout_s == 300
    assert settings.broker.user == role
    assert (settings.broker.seal_secret is None) == (role == "api")
    assert written[f"/etc/systemd/system/inferflux-{role}.service"] == text(f"deploy/systemd/inferflux-{role}.service")


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_are_locked_up_and_wait_for_the_drain(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["User"] == "inferflux"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["Restart"] == "always"
    drain_s = max(ServerSettings().drain_timeout_s, WorkerSettings().drain_timeout_s)
    # One process after the other where there are both.
    assert float(service["TimeoutStopSec"]) > drain_s * (2 if path.stem == "inferflux" else 1)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_no_fault(path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True, check=False)
    # The programs are not installed where this runs, and neither is the user.
    faults = [line for line in done.stderr.splitlines() if path.name in line and "is not executable" not in line]
    assert not faults


def test_the_audit_log_is_renamed_and_not_copied(tmp_path: Path) -> None:
    assert "nocopytruncate" in text("deploy/logrotate/inferflux")
    logrotate = shutil.which("logrotate") or "/usr/sbin/logrotate"
    if not Path(logrotate).exists():
        pytest.skip("logrotate is not installed")
    log = tmp_path / "audit.log"
    log.write_text("a line\n")
    inode = log.stat().st_ino
    example = text("deploy/logrotate/inferflux").replace("/var/log/inferflux/audit*.log", str(tmp_path / "audit*.log"))
    config = tmp_path / "rotate.conf"
    config.write_text(re.sub(r"^\s*su .*\n", "", example, flags=re.MULTILINE))
    config.chmod(0o644)
    tmp_path.chmod(0o755)
    command = [logrotate, "--force", "--state", tmp_path / "state", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (rotated,) = tmp_path.glob("audit.log-*")
    assert rotated.stat().st_ino == inode
    assert not log.exists()
