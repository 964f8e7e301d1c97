"""What operators install is sound, names nothing that does not exist, and is what docs/operations.md says."""

import configparser
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest
import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner
from flask.cli import FlaskGroup
from prometheus_client.metrics_core import Metric

from project import create_app, metrics
from project.config import load_config
from tests.conftest import ENV
from tests.servers import NGINX

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted([*(DEPLOY / "systemd").glob("project-*.service"), *(DEPLOY / "systemd").glob("*.timer")])
GRANIAN = DEPLOY / "systemd" / "granian.conf"
SERVICES = [path for path in UNITS if path.suffix == ".service"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
GROUPS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
DOCUMENTED = set(re.findall(r"^([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
# What the interpreter, Flask, images and systemd know; not settings of ours.
OF_PYTHON = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
OTHERS = {"PATH", "GLIBC_TUNABLES", "FLASK_APP", "FLASK_SKIP_DOTENV", *OF_PYTHON}
# Of exporters: deploy/alerts.yml says of each rule which one it needs. The last is written by deploy/systemd/backup.
EXPORTED = {
    "up",
    "node_systemd_unit_state",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "probe_ssl_earliest_cert_expiry",
    "probe_success",
    "project_backup_time_seconds",
}
# The words of the language, and the labels that rules group by.
PROMQL = {
    "sum",
    "max",
    "min",
    "rate",
    "increase",
    "absent",
    "by",
    "le",
    "and",
    "or",
    "unless",
    "offset",
    "histogram_quantile",
    "vector",
    "time",
    "predict_linear",
    "min_over_time",
    "route",
    "instance",
    "task",
}


def systemd_analyze(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def unit(path: Path) -> dict[str, dict[str, str]]:
    """Read a unit together with the drop-in of all services; of what is there twice, the last counts."""
    parser = configparser.RawConfigParser(strict=False, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read([path, DEPLOY / "systemd" / "project-.service.d" / "hardening.conf"])
    return {name: dict(parser[name]) for name in parser.sections()}


def seconds(text: str) -> int:
    [(number, name)] = re.findall(r"^(\d+)(\D*)$", text)
    return int(number) * {"": 1, "s": 1, "min": 60, "h": 3600}[name]


@pytest.fixture(scope="module")
def flask(tmp_path_factory):
    app = create_app({**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("commands"))})
    return FlaskGroup(create_app=lambda: app, load_dotenv=False, set_debug_flag=False)


@pytest.fixture
def installed(tmp_path) -> Path:
    """The units as systemd would find them, with commands that exist."""
    units = tmp_path / "units"
    shutil.copytree(DEPLOY / "systemd", units, ignore=shutil.ignore_patterns("nginx.service.d"))
    for path in units.glob("*.service"):
        text = path.read_text().replace("/srv/project/current", str(tmp_path))
        for command in re.findall(rf"^ExecStart=({tmp_path}\S+)", text, re.MULTILINE):
            Path(command).parent.mkdir(parents=True, exist_ok=True)
            Path(command).write_text("#!/bin/sh\n")
            Path(command).chmod(0o755)
        path.write_text(text)
    (units / "project-web@.service").rename(units / "project-web@8001.service")
    return units


@pytest.fixture
def with_granian(installed) -> Path:
    """The same units, with servers under granian."""
    text = (installed / "granian.conf").read_text().replace("/srv/project/current", str(installed.parent))
    program = installed.parent / ".venv" / "bin" / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    drop_in = installed / "project-web@8001.service.d" / "granian.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(text)
    return installed


# --- systemd ----------------------------------------------------------------------------------------------------------

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
def test_systemd_understands_every_unit(installed):
    names = sorted(path.name for path in installed.iterdir() if path.suffix in {".service", ".timer", ".target"})
    found = systemd_analyze("verify", "--man=no", "--recursive-errors=no", *names, cwd=installed)
    assert (found.returncode, found.stderr) == (0, "")


@needs_systemd
def test_systemd_understands_the_servers_under_granian(with_granian):
    found = systemd_analyze("verify", "--man=no", "--recursive-errors=no", "project-web@8001.service", cwd=with_granian)
    assert (found.returncode, found.stderr) == (0, "")


def test_under_granian_a_server_is_the_same_unit_with_another_program():
    text = GRANIAN.read_text()
    settings = {name for name, _ in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)}
    assert settings == {"Type", "Environment", "ExecStart"}
    assert set(re.findall(r"^Environment=(\w+)=", text, re.MULTILINE)) <= DOCUMENTED
    [program] = re.findall(r"^ExecStart=(\S+) -m deploy.granian_server --bind 127.0.0.1:%i$", text, re.MULTILINE)
    assert program == "/srv/project/current/.venv/bin/python"
    graceful = (DEPLOY / "granian_server.py").read_text()
    assert re.findall(r"^GRACEFUL_SECONDS = (\d+)", graceful, re.MULTILINE) == ["30"]  # as for gunicorn, see below


@needs_systemd
def test_systemd_finds_little_that_a_service_may_do_without_need(installed):
    for path in installed.glob("*.service"):
        found = systemd_analyze("security", "--offline=yes", "--threshold=15", "--no-pager", path.name, cwd=installed)
        assert found.returncode == 0, found.stdout[-100:]


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_writes_only_where_it_keeps_something(path):
    service = unit(path)["Service"]
    assert (service["User"], service["ProtectSystem"], service["NoNewPrivileges"]) == ("project", "strict", "yes")
    assert service["CapabilityBoundingSet"] == ""
    assert set(service) & {"ReadWritePaths"} <= ({"ReadWritePaths"} if "backup" in path.name else set())


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_what_a_service_runs_exists(path, flask):
    program, *arguments = unit(path)["Service"]["ExecStart"].removeprefix("/srv/project/current/").split()
    if program == ".venv/bin/flask":
        command = [word for word in arguments if re.fullmatch(r"[a-z]+", word)]
        assert CliRunner().invoke(flask, [*command, "--help"]).exit_code == 0
    elif program == ".venv/bin/gunicorn":
        assert all((ROOT / path).exists() for path in [arguments[arguments.index("-c") + 1], "wsgi.py"])
    else:
        assert (ROOT / program).stat().st_mode & 0o111


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_names_only_settings_that_exist(path):
    lines = re.findall(r"^Environment=(.*)$", path.read_text(), re.MULTILINE)
    named = {pair.partition("=")[0] for line in lines for pair in line.split()}
    assert named <= DOCUMENTED | OTHERS


def test_stopping_has_time_for_the_longest_drain_and_what_is_under_way():
    gunicorn = (DEPLOY / "gunicorn.conf.py").read_text()
    [graceful] = map(int, re.findall(r"^graceful_timeout = (\d+)", gunicorn, re.MULTILINE))
    config = (ROOT / "src" / "project" / "config.py").read_text()
    [longest] = map(int, re.findall(r'"DRAIN_SECONDS", 0, at_most=(\d+)', config))
    service = unit(DEPLOY / "systemd" / "project-web@.service")["Service"]
    assert seconds(service["TimeoutStopSec"]) > longest + graceful
    assert seconds(COMPOSE["services"]["app"]["stop_grace_period"]) > longest + graceful
    # If gunicorn's processes heard TERM themselves, they would stop without a drain.
    assert service["KillMode"] == "mixed"


def test_servers_and_worker_of_a_machine_count_in_one_folder_that_outlives_them():
    for name in ("project-web@.service", "project-worker.service"):
        service = unit(DEPLOY / "systemd" / name)["Service"]
        assert service["RuntimeDirectory"] == "project/metrics"
        assert service["RuntimeDirectoryPreserve"] == "yes"
        assert "PROMETHEUS_MULTIPROC_DIR=%t/project/metrics" in (DEPLOY / "systemd" / name).read_text()


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".timer"], ids=lambda path: path.name)
def test_a_timer_has_its_service(path):
    assert path.with_suffix(".service") in SERVICES


# --- taking servers out of nginx --------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose commands only write down what they are asked for; a server is ready unless `broken` is there."""
    commands = {
        "systemctl": 'echo "$* $(grep -c down "$UPSTREAM")" >>"$LOG"',
        "curl": '[ ! -e "$LOG.broken" ] && echo "ready" >>"$LOG"',
        "pgrep": "echo $RANDOM",
        "sleep": "true",
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    shutil.copy(DEPLOY / "nginx" / "upstream.conf", tmp_path / "upstream.conf")
    (tmp_path / "nginx.pid").write_text("1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, file in {"UPSTREAM": "upstream.conf", "LOG": "log", "NGINX_PID": "nginx.pid"}.items():
        monkeypatch.setenv(name, str(tmp_path / file))
    return tmp_path


def roll() -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEPLOY / "systemd" / "roll"], capture_output=True, text=True, check=False, timeout=60)


def test_each_server_is_out_of_nginx_while_it_restarts(machine):
    assert roll().returncode == 0
    step = ["reload nginx 1", "restart project-web@{} 1", "ready", "reload nginx 0"]
    expected = [line.format(port) for port in (8001, 8002) for line in step]
    assert (machine / "log").read_text().splitlines() == expected
    assert (machine / "upstream.conf").read_text() == (DEPLOY / "nginx" / "upstream.conf").read_text()


def test_a_server_that_does_not_become_ready_stays_out_and_the_next_is_left_alone(machine):
    (machine / "log.broken").touch()
    assert roll().returncode == 1
    assert "project-web@8002" not in (machine / "log").read_text()
    servers = re.findall(r"^ +server .*;$", (machine / "upstream.conf").read_text(), re.MULTILINE)
    assert ["down" in server for server in servers] == [True, False]


def test_the_only_server_is_not_taken_out(machine):
    upstream = machine / "upstream.conf"
    upstream.write_text(re.sub(r".*8002.*\n", "", upstream.read_text()))
    assert roll().returncode == 1
    assert not (machine / "log").exists()


# --- containers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_a_container_can_do_as_little_as_possible(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid"}
    image = service["image"]
    assert image == "project" or re.fullmatch(r"[a-z/]+:\d+\.\d+(\.\d+)?-bookworm", image)
    assert image == "project" or not service["user"].startswith("0")


def test_only_nginx_can_be_reached():
    services, networks = COMPOSE["services"], COMPOSE["networks"]
    assert {name for name, service in services.items() if "ports" in service} == {"nginx"}
    assert {name for name, network in networks.items() if (network or {}).get("internal")} == {"front", "back"}
    for name in ("postgres", "valkey"):
        assert services[name]["networks"] == ["back"]
    assert "back" not in services["nginx"]["networks"]


def test_containers_name_only_settings_and_files_that_exist():
    for service in COMPOSE["services"].values():
        if service["image"] == "project":
            assert set(service["environment"]) <= DOCUMENTED
            assert service["env_file"] == "/etc/project/project.env"
        used = set(service.get("networks", [])) | {each.partition(":")[0] for each in service.get("volumes", [])}
        for each in used:
            known = COMPOSE["networks"].keys() | COMPOSE["volumes"].keys()
            assert each in known or each.startswith("/etc/project/") or (DEPLOY / each).exists()
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])


def test_the_image_is_pinned_and_does_not_run_as_root():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-bookworm$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:${PYTHON}"}
    assert "--require-hashes" in text
    final = text.rpartition("FROM ")[2]
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["10001:10001"]
    [names] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", final, re.MULTILINE)
    assert set(re.findall(r"(?:^|\s)(\w+)=", names)) <= DOCUMENTED | OTHERS


def test_the_image_gets_nothing_but_what_it_runs():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert all((ROOT / path).exists() for path in kept)
    assert {".env", "instance", "tests", ".git", "docs"} & kept == set()
    copied = re.findall(r"^COPY (?!--from)(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {path for path in copied if path != "."} <= kept


# --- nginx ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("folder", ["nginx", "compose"])
def test_nginx_understands_its_configuration(folder, tmp_path):
    for source in [*(DEPLOY / "nginx").glob("*.conf"), *(DEPLOY / folder).glob("*.conf")]:
        shutil.copy(source, tmp_path)
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=api.example.com", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    spools = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in ("fastcgi", "uwsgi", "scgi"))
    if folder == "nginx":
        spools += f"client_body_temp_path {tmp_path}/body;\nproxy_temp_path {tmp_path}/proxy;\n"
    for path in tmp_path.glob("*.conf"):
        text = re.sub(r"/etc/letsencrypt/live/api.example.com|/etc/project/tls|/run|/var/(log|cache)/nginx",
                      str(tmp_path), path.read_text())  # fmt: skip
        # The name of a container is known to Docker alone, and whose group the files have only where they are.
        text = text.replace("server app:8000", "server 127.0.0.1:8000").replace("user www-data project;", "")
        path.write_text(text)
    (tmp_path / "upstream.conf").write_text(spools + (tmp_path / "upstream.conf").read_text())
    found = subprocess.run(
        [str(NGINX), "-t", "-q", "-e", "stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


# --- alarms -----------------------------------------------------------------------------------------------------------


def exported() -> Iterator[str]:
    """The names under which Prometheus sees what the application counts and measures."""
    known: list[Metric] = [
        metric
        for value in vars(metrics).values()
        if isinstance(value, prometheus_client.metrics.MetricWrapperBase)
        for metric in value.collect()
    ]
    for metric in known:
        yield from {
            "counter": [f"{metric.name}_total"],
            "histogram": [f"{metric.name}_{end}" for end in ("bucket", "sum", "count")],
        }.get(metric.type, [metric.name])
    yield from (measure.name for measure in metrics._measures)


def named(expression: str) -> set[str]:
    """The metrics of an expression: its words without labels, strings, numbers and what belongs to the language."""
    bare = re.sub(r"#.*", "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", " ", bare)
    return set(re.findall(r"\b[a-z][a-z_]+\b", bare)) - PROMQL


@pytest.mark.usefixtures("flask")  # the features register what they measure
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_looks_at_what_exists(rule):
    names = named(rule["expr"])
    assert names
    assert names - set(exported()) - EXPORTED == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_is_whole_and_says_where_its_cure_is(rule):
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    for left, right in ("()", "{}", "[]"):
        assert rule["expr"].count(left) == rule["expr"].count(right)


def test_every_alarm_has_its_section_and_every_section_its_alarm():
    sections = OPERATIONS.partition("\n## Alarms\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", sections, re.MULTILINE) == [rule["alert"] for rule in RULES]


@pytest.mark.usefixtures("flask")
def test_the_metrics_in_operations_exist():
    table = OPERATIONS.partition("| Name | What it tells |")[2].partition("\n\n")[0]
    names = {
        name for row in table.splitlines() for name in re.findall(r"`([a-z_]+)`", row.split("|")[1] if row else "")
    }
    known = set(exported())
    assert {name for name in names if name not in known and f"{name}_bucket" not in known} == set()


def test_metrics_of_every_kind_are_found():
    assert {"http_requests_total", "http_request_duration_seconds_bucket", "jobs_waiting"} <= set(exported())


# --- docs/operations.md -----------------------------------------------------------------------------------------------


def test_the_settings_that_operations_writes_are_those_of_production(tmp_path):
    [text] = re.findall(r"cat > /etc/project/project\.env <<EOF\n(.*?)^EOF$", OPERATIONS, re.MULTILINE | re.DOTALL)
    given = dict(line.split("=", 1) for line in text.splitlines())
    assert set(given) <= DOCUMENTED
    secrets = {
        "sk_live_…": "sk_live_" + "a1" * 12,
        "pk_live_…": "pk_live_" + "b2" * 12,
        "whsec_…": "whsec_" + "c3" * 16,
    }
    (tmp_path / "files").mkdir()
    for name, value in given.items():
        for example, real in secrets.items():
            value = value.replace(example, real)  # noqa: PLW2901
        value = value.replace("$(random)", f"{name}-0123456789-abcdefghijklmnop")  # noqa: PLW2901
        given[name] = value.replace("/var/lib/project", str(tmp_path)).replace("$(date +%Y-%m)", "2026-11")
    settings = load_config(given)
    assert (settings.production, settings.payments.livemode, settings.files.delivery) == (True, True, "x-accel")
    assert settings.trusted_hosts[-1] == "api.example.com"


def test_every_file_that_operations_names_exists():
    named = set(re.findall(r"(?<![\w/])deploy/[\w./-]*\w", OPERATIONS))
    assert len(named) > 5
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_command_of_project_flask_exists(flask):
    commands = set(re.findall(r"project-flask ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)(?![\w@.])", OPERATIONS))
    assert "doctor" in commands
    assert [name for name in sorted(commands) if CliRunner().invoke(flask, [*name.split(), "--help"]).exit_code] == []


def test_scripts_are_programs_that_bash_understands():
    for name in ("backup", "roll", "project-flask"):
        path = DEPLOY / "systemd" / name
        assert path.stat().st_mode & 0o111
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
