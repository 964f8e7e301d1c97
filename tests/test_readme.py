import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from flask.cli import FlaskGroup

from project import create_app
from project.config import load_config
from project.errors import REGISTRY, Unauthorized
from tests.conftest import ENV
from tests.servers import run_server

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SHELL = ("bash", "sh", "console")
# What is another one each time: ids, those of the sandbox, the token of a share, the signature of a URL.
VARYING = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|pi_sbx_\w+|(?<=shares/)[\w-]{43}|(?<=exp=).*")

STEPS = [
    "202 POST /v1/auth/register",
    "200 POST /v1/auth/verify-email",
    "200 POST /v1/auth/login",
    "200 GET /v1/users/me",
    "200 GET /v1/users/me",
    "200 PATCH /v1/users/me",
    "412 PATCH /v1/users/me",
    "422 PATCH /v1/users/me",
    "200 POST /v1/auth/refresh",
    "200 POST /v1/auth/refresh",
    "201 POST /v1/files",
    "200 GET /v1/files/…/thumbnail?size=128",
    "200 POST /v1/files/…/signed-url",
    "200 GET /v1/files/…/content?disposition=inline&exp=…",
    "201 POST /v1/files/raw?filename=note.txt",
    "422 POST /v1/files/raw?filename=note.txt",
    "206 GET /v1/files/…/content",
    "201 POST /v1/files/…/shares",
    "200 GET /v1/shares/…",
    "204 DELETE /v1/files/…/shares/…",
    "410 GET /v1/shares/…",
    "200 GET /v1/files/usage",
    "200 GET /v1/prices",
    "201 POST /v1/payments",
    "201 POST /v1/payments",
    "402 POST /v1/sandbox/payment-intents/…/confirm",
    "200 POST /v1/sandbox/payment-intents/…/confirm",
    "200 GET /v1/payments/…?sync=true",
    "200 GET /v1/payments/…/receipt",
    "200 GET /v1/auth/sessions",
    "204 POST /v1/auth/logout",
    "401 GET /v1/users/me",
]
SHOWN = [
    '"status":"accepted"',
    '"email_verified":true',
    '"name":"Ann Lee"',
    '"code":"precondition_failed"',
    '"pointer": "/role"',
    "the same refresh token",
    '"content_type":"image/png"',
    "a thumbnail of",
    "the same picture",
    '"code":"digest_mismatch"',
    "\nmilk\nBuy milk.\n",
    '"code":"share_expired"',
    '"file_count":2',
    '"reference":"order-1"',
    "the same payment",
    '"code":"payment_declined"',
    '"next_action":null',
    '"status":"succeeded","amount":',
    '"number":"R-',
    '"current":true',
    '"code":"session_revoked"',
]


def prose(path):
    """The text outside of code blocks."""
    return FENCE.sub("", path.read_text())


def commands(path):
    """What a reader may type: the lines of shell blocks that are no comments, and code within sentences."""
    blocks = [code for info, code in FENCE.findall(path.read_text()) if info.split(" ")[0] in SHELL]
    lines = [line for code in blocks for line in code.splitlines() if not line.lstrip().startswith("#")]
    return [*lines, *SPAN.findall(prose(path))]


def settings(path):
    """The settings that a document names: those with an underscore, and the first column of its table."""
    named = {span for span in SPAN.findall(prose(path)) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", span)}
    table = path.read_text().partition("| Setting |")[2].partition("\n\n")[0]
    return named | {name for row in table.splitlines()[2:] for name in SPAN.findall(row.split("|")[1])}


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(prose(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.server
def test_the_walk_through_shows_what_it_says(tmp_path):
    scripts = [code for info, code in FENCE.findall(README.read_text()) if "walk-through" in info]
    env = {"APP_ENV": "development", "DATA_DIR": str(tmp_path)}
    # The .env of a developer must not decide which database this is.
    command = {"PATH": os.environ["PATH"], "FLASK_APP": "wsgi:app", "FLASK_SKIP_DOTENV": "1", **env}
    # As `make run` does before it serves.
    for arguments in (["db", "upgrade"], ["seed"]):
        subprocess.run([sys.executable, "-m", "flask", *arguments], cwd=ROOT, env=command, check=True)

    with run_server(env) as server:
        result = subprocess.run(
            ["bash", "-eu"],
            input="".join(scripts),
            env={"PATH": os.environ["PATH"], "BASE": server.url, "OUTBOX": str(tmp_path / "outbox")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert [VARYING.sub("…", step) for step in result.stderr.splitlines()] == STEPS
    assert [text for text in SHOWN if text not in result.stdout] == []
    assert result.returncode == 0


def test_the_map_of_the_code_is_complete():
    modules = {path.name for path in (ROOT / "src" / "project").iterdir() if not path.name.startswith("_")}
    assert {name for name in modules if name not in README.read_text()} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_make_target_that_is_named_exists(document):
    named = {target for line in commands(document) for target in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named - set(targets) == set()


@pytest.fixture(scope="module")
def flask(tmp_path_factory):
    """The `flask` command with all its subcommands."""
    app = create_app({**ENV, "DATA_DIR": str(tmp_path_factory.mktemp("commands"))})
    return FlaskGroup(create_app=lambda: app, load_dotenv=False, set_debug_flag=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_flask_command_that_is_named_exists(document, flask):
    named = {
        match
        for line in commands(document)
        for match in re.findall(r"(?<![\w.-])flask((?: [a-z][a-z-]*(?![\w@.=/]))+)", line)
    }
    unknown = [name for name in sorted(named) if CliRunner().invoke(flask, [*name.split(), "--help"]).exit_code]
    assert unknown == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_relative_link_leads_somewhere(document):
    broken = []
    for link in LINK.findall(prose(document)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_setting_that_is_named_is_in_the_example(document):
    example = re.findall(r"^#? ?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert settings(document) - set(example) == set()


def test_the_client_guide_names_every_limit_with_its_default(tmp_path):
    rows = re.findall(
        r"^\| `LIMIT_([A-Z_]+)` \| ([^|]+) \|", (ROOT / "docs" / "client-guide.md").read_text(), re.MULTILINE
    )
    limits = load_config({**ENV, "DATA_DIR": str(tmp_path)}).limits
    assert {name.lower(): default for name, default in rows} == asdict(limits)


def test_the_client_guide_says_what_to_do_with_codes_that_exist():
    table = (ROOT / "docs" / "client-guide.md").read_text().partition("| What to do | Code |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table)) - {"errors", "request_id", "code"}
    assert named - set(REGISTRY) == set()
    assert {error.code for error in Unauthorized.__subclasses__()} <= named
