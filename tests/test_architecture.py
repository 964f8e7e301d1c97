"""What holds for the code as a whole: rules that a reviewer would otherwise have to remember."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import flask_migrate
import pytest
from werkzeug.routing import Rule

from project import create_app
from project.api import BLUEPRINTS, PREFIX
from project.json import MAX_BODY_BYTES
from tests.conftest import ENV

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "project"
MODULES = sorted(SOURCE.rglob("*.py"))
ROUTES = sorted(SOURCE.rglob("*routes.py"))
VERBS = {"get", "post", "put", "patch", "delete"}

# Operations for everybody. A route that is not here needs a token.
PUBLIC = {
    "register",
    "verify_email",
    "resend_verification",
    "login",
    "forgot_password",
    "reset_password",
    "confirm_email",
    "get_shared_content",
    "receive_stripe_webhook",
    "receive_sandbox_webhook",
    "list_payment_methods",
    "confirm_payment_intent",
    "show_authentication",
    "authenticate_payment_intent",
}
# Operations where signing in is optional: what they show depends on it.
OPTIONAL = {"get_content", "get_thumbnail", "list_prices", "get_price"}
# From the top: what may be counted before who is known, who is known before what is read.
ORDER = [
    ("verb", VERBS),
    ("limit", {"limit"}),
    ("who", {"public", "login_optional", "login_required", "role_required", "token_required"}),
    ("idempotency", {"idempotent"}),
    ("body", {"raw_body", "signed"}),
    ("arguments", {"arguments"}),
    ("response", {"response"}),
    ("content", {"serves_content"}),
    ("conditional", {"conditional"}),
    ("precondition", {"precondition"}),
    ("raises", {"raises"}),
]
# The loaders themselves, the Link header, and the digest in the address of an asset.
MAY_READ_INPUT = {"json.py", "blueprint.py", "pagination.py", "pages.py"}
# metrics.py for the library, which looks there by itself when it is imported.
MAY_READ_ENVIRONMENT = {"config.py", "app.py", "metrics.py"}
NEED_A_REQUEST = {
    *(path.name for path in ROUTES),
    *("webhooks.py", "tokens.py", "bodies.py", "delivery.py", "exports.py", "page.py", "receipt_page.py"),
}
# What every problem has (RFC 9457, with code and request_id of ours).
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}
ID = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    """Parse a module once."""
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[Function]:
    """Give every function of a module, nested ones too."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def decorators(function: Function) -> list[str]:
    """Name the decorators of a function by their last part, from the top."""
    names = []
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        names.append(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return names


def routes() -> list[tuple[Path, Function]]:
    """Find every route by its verb."""
    return [(path, function) for path in ROUTES for function in functions(path) if VERBS & set(decorators(function))]


def body_lines(function: Function) -> int:
    """Count the lines of a function below its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


route = pytest.mark.parametrize(
    ("path", "function"), routes(), ids=[f"{path.parent.name}.{function.name}" for path, function in routes()]
)
module = pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(SOURCE)) for path in MODULES])


def test_there_are_routes_to_look_at():
    assert len(routes()) == sum(len(blueprint._endpoints) for blueprint in BLUEPRINTS)


@route
def test_a_route_asks_who_is_calling_unless_it_is_for_everybody(path, function):
    guards = {"login_optional", "login_required", "role_required", "token_required"} & set(decorators(function))
    assert bool(guards) != (function.name in PUBLIC)
    assert ("public" in decorators(function)) == (function.name in PUBLIC)


@route
def test_a_route_has_its_decorators_in_the_one_order(path, function):
    steps = [step for name in decorators(function) for step, names in ORDER if name in names]
    assert len(steps) == len(function.decorator_list), "a decorator that the order does not know"
    assert steps == sorted(steps, key=[step for step, _ in ORDER].index)
    assert {"verb", "limit", "who", "response"} <= set(steps)


@route
def test_a_route_is_short_and_leaves_the_session_to_its_service(path, function):
    assert body_lines(function) <= 10
    assert "session" not in {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    assert ast.get_docstring(function)


@route
def test_a_route_is_asked_for_in_the_tests(path, function):
    decorator = function.decorator_list[0]
    assert isinstance(decorator, ast.Call)
    rule = ast.literal_eval(decorator.args[0])
    prefix = next(
        blueprint.url_prefix
        for blueprint in BLUEPRINTS
        if function.name in {endpoint.rpartition(".")[2] for endpoint in blueprint._endpoints}
    )
    # Ids are written in many ways, as {user.id}, {uuid4()} or {{id}}; what stands around them is fixed.
    pattern = re.sub(r"<[^>]+>", "@", PREFIX + (prefix or "") + rule)
    pattern = re.escape(pattern).replace("@", r"(?:\{[^}]*\}|[^\s\"'/]+)")
    asked = re.compile(rf"{pattern}(?![a-z/-])")
    assert any(asked.search(text) for text in test_sources()), f"no test asks for {rule}"


@cache
def test_sources() -> tuple[str, ...]:
    """Read the other tests, with their constants for paths written out."""
    return tuple(_written_out(path.read_text()) for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))


def _written_out(source: str) -> str:
    for name, value in re.findall(r'^([A-Z_]+) = "(/v1[^"]*)"$', source, re.MULTILINE):
        source = source.replace(f"{{{name}}}", value)
    return source


# A helper whose name pytest would take for a test.
test_sources.__test__ = False  # type: ignore[attr-defined]


@module
def test_a_module_says_what_lives_there_and_stays_small(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300
    assert not lines or ast.get_docstring(tree(path))


@module
def test_functions_stay_small_and_import_nothing(path):
    for function in functions(path):
        assert (function.end_lineno or 0) - function.lineno + 1 <= 40, function.name
        assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function)), function.name


@module
def test_only_the_database_module_commits(path):
    calls = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    assert path.name == "database.py" or not calls & {"commit", "begin_nested"}


@module
def test_only_the_verifier_decodes_tokens(path):
    source = path.read_text()
    assert path.name == "tokens.py" or "decode_token" not in source
    assert "jwt.decode(" not in source


@module
def test_input_is_read_by_the_strict_loaders_only(path):
    reads = {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"request", "req"}
    }
    assert path.name in MAY_READ_INPUT or not reads & {"get_json", "get_data", "json", "form", "files", "args", "data"}


@module
def test_the_environment_is_read_in_one_place(path):
    reads = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    assert path.name in MAY_READ_ENVIRONMENT or not reads & {"os.environ", "os.getenv"}


def test_there_is_no_module_for_what_has_no_place():
    assert not {path.stem for path in MODULES} & {"utils", "helpers", "common", "misc", "manager"}


@module
def test_services_and_models_know_nothing_of_requests(path):
    # What the contract in setup.cfg says of the modules it lists holds for all that a feature may get.
    imported = {name.partition(".")[0] for name in imports(path)}
    in_feature = path.parent != SOURCE and path.name not in NEED_A_REQUEST
    assert not in_feature or not {name for name in imported if name.startswith("flask")}


def imports(path: Path) -> Iterator[str]:
    """Name the modules that a module imports."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_its_place_among_the_layers():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:layers"]["layers"]
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in MODULES}
    assert {name for name in names if not name.endswith("__init__")} == set(re.findall(r"project[\w.]+", layers))


# --- the running application ------------------------------------------------------------------------------------------


def operations(app) -> list[tuple[str, str, Rule]]:
    """Give every operation of the API: method, a path, and its rule."""
    return [
        (method, re.sub(r"<[^>]+>", ID, rule.rule), rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(PREFIX)
    ]


def test_every_operation_outside_the_public_list_is_401_without_a_token(app, client):
    statuses = {rule.endpoint: client.open(path, method=method).status_code for method, path, rule in operations(app)}

    assert {endpoint.partition(".")[2] for endpoint, status in statuses.items() if status != 401} == PUBLIC | OPTIONAL


def test_every_operation_is_limited_the_public_ones_each_by_itself(app):
    for _, _, rule in operations(app):
        marks = app.view_functions[rule.endpoint]._apidoc
        assert (marks["limit"] == "webhook") == bool(marks.get("signed"))
        # A client secret or a signature says who is calling, and the provider whom the sandbox stands for has no limit.
        if marks.get("signed") or "/sandbox/" in rule.rule:
            continue
        assert marks["limit"] in {"read", "write", "download", "anonymous"}
        assert (marks["limit"] == "download") == bool(marks.get("content"))
        assert (marks["limit"] == "anonymous") == (marks["auth"] == "public" and not marks.get("content"))
        assert (marks["limit"] in {"read", "download"}) == ("GET" in (rule.methods or set()))


REFUSALS = [
    ("anonymous", "GET", "/v1/nothing", {}, 404, "not_found"),
    ("anonymous", "GET", "/nothing", {}, 404, "not_found"),
    ("anonymous", "PUT", "/v1/users/me", {}, 405, "method_not_allowed"),
    ("anonymous", "DELETE", "/healthz", {}, 405, "method_not_allowed"),
    ("anonymous", "GET", "/v1/users/me", {}, 401, "token_required"),
    ("anonymous", "GET", "/v1/users/me", {"headers": {"Authorization": "Bearer x.y.z"}}, 401, "invalid_token"),
    ("anonymous", "POST", "/v1/auth/verify-email", {"json": {"token": "x"}}, 400, "invalid_link"),
    ("anonymous", "GET", "/", {"headers": {"Host": "evil.example"}}, 400, "bad_request"),
    ("user", "GET", "/v1/users", {}, 403, "forbidden"),
    ("user", "DELETE", f"/v1/auth/sessions/{ID}", {}, 404, "not_found"),
    ("user", "GET", "/v1/auth/sessions?cursor=x", {}, 400, "invalid_cursor"),
    ("user", "GET", "/v1/auth/sessions?limit=0", {}, 422, "validation_error"),
    ("user", "GET", "/v1/users/me?x=1", {}, 422, "validation_error"),
    ("anonymous", "POST", "/v1/auth/verify-email?x=1", {"json": {"token": "x"}}, 422, "validation_error"),
    ("user", "PATCH", "/v1/users/me", {"data": b"{", "content_type": "application/json"}, 400, "invalid_json"),
    ("user", "PATCH", "/v1/users/me", {"data": b"{}", "content_type": "text/plain"}, 415, "unsupported_media_type"),
    ("user", "PATCH", "/v1/users/me", {"json": "x" * MAX_BODY_BYTES}, 413, "payload_too_large"),
    ("user", "PATCH", "/v1/users/me", {"json": {"name": 1}}, 422, "validation_error"),
    ("user", "PATCH", "/v1/users/me", {"json": {}, "headers": {"If-Match": '"old"'}}, 412, "precondition_failed"),
    ("admin", "PATCH", "/v1/users/{me}", {"json": {"role": "user"}}, 409, "last_admin"),
]


@pytest.mark.parametrize(("caller", "method", "path", "sent", "status", "code"), REFUSALS)
def test_there_is_one_error_body(client, as_user, caller, method, path, sent, status, code):
    signed_in = as_user(role=caller) if caller != "anonymous" else None
    headers = {**(signed_in or {}), **sent.get("headers", {})}
    url = path.replace("{me}", str(signed_in.user.id)) if signed_in else path

    response = client.open(url, method=method, **{**sent, "headers": headers})

    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    assert set(response.json) == MEMBERS | ({"errors"} if status == 422 else set())
    assert (response.json["status"], response.json["code"], response.json["type"]) == (status, code, f"/errors#{code}")
    assert response.json["instance"] == url.partition("?")[0]
    assert response.json["request_id"] == response.headers["X-Request-ID"]


# --- migrations -------------------------------------------------------------------------------------------------------

LEFT_OUT = {
    "prefer-bigint-over-int": "what is counted in integers belongs to one account or is an HTTP status",
    "prefer-text-field": "lengths are bounded in the database as well, and are the same on SQLite",
    "require-lock-timeout": "migrations/env.py sets it for every migration",
    "require-statement-timeout": "migrations/env.py sets it for every migration",
}


def test_the_migrations_lock_no_table_for_long(tmp_path, capsys):
    """Ask squawk, except about 0001: that is Procrastinate's own schema, and the first of all."""
    env = {**ENV, "DATA_DIR": str(tmp_path), "DATABASE_URL": "postgresql://nobody@127.0.0.1/not-connected-to"}
    with create_app(env).app_context():
        flask_migrate.upgrade(revision="0001:head", sql=True)
    migrations = tmp_path / "migrations.sql"
    migrations.write_text(capsys.readouterr().out)
    squawk = Path(sys.executable).with_name("squawk")
    options = ["--pg-version=15", "--reporter=gcc", f"--exclude={','.join(LEFT_OUT)}"]

    done = subprocess.run([squawk, *options, migrations], check=False, capture_output=True, text=True)

    assert "CREATE TABLE users" in migrations.read_text()
    assert done.returncode == 0, done.stdout + done.stderr
