"""The documentation page and the list of errors, as a person with a browser meets them."""

import json
import re
from collections.abc import Iterator

import flask_migrate
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from project import create_app
from project.auth.passwords import hash_password
from project.database import db
from project.users import service as users
from tests.browser import complaints, needs_chromium, run_browser
from tests.servers import run_server

pytestmark = [pytest.mark.browser, pytest.mark.server, needs_chromium]

EMAIL = "demo@example.com"
PASSWORD = "a lighthouse keeper's teapot"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[str]:
    """The address of the application with one account."""
    env = {"APP_ENV": "testing", "DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    app = create_app(env)
    with app.app_context():
        flask_migrate.upgrade()
        users.create_user(email=EMAIL, password_hash=hash_password(PASSWORD), email_verified=True)
        db.engine.dispose()
    with run_server(env) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_browser() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of a browser that remembers nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def opened(page: Page, tag: str, operation_id: str) -> Locator:
    """Unfold an operation, ready to be tried out."""
    operation = page.locator(f"#operations-{tag}-{operation_id}")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    return operation


def execute(operation: Locator) -> None:
    operation.get_by_role("button", name="Execute").click()


def answer(operation: Locator) -> Locator:
    return operation.locator(".live-responses-table tbody tr").first


def is_light(element: Locator, colour: str) -> bool:
    value = element.evaluate(f"element => getComputedStyle(element).{colour}")
    return sum(map(int, re.findall(r"\d+", value)[:3])) > 3 * 128


def stored(page: Page) -> str:
    """What the browser would keep beyond this page."""
    return page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")


def sign_in(page: Page) -> None:
    login = opened(page, "auth", "login")
    login.locator("textarea").fill(json.dumps({"email": EMAIL, "password": PASSWORD}))
    execute(login)
    expect(answer(login)).to_contain_text("200")


def test_operations_work_after_signing_in_on_the_page_and_fail_after_signing_out(page, site, tmp_path):
    wrong = complaints(page)
    page.goto(f"{site}/docs")
    session = page.locator("#session")
    expect(session).to_be_hidden()

    sign_in(page)
    expect(session).to_have_text(f"Signed in as {EMAIL}")
    me = opened(page, "users", "getMe")
    execute(me)
    expect(answer(me)).to_contain_text("200")
    expect(answer(me).locator(".response-col_description")).to_contain_text(f'"email": "{EMAIL}"')
    page.screenshot(path=tmp_path / "docs.png")
    refresh = opened(page, "auth", "refresh")
    execute(refresh)
    expect(answer(refresh)).to_contain_text("200")
    assert wrong == []

    logout = opened(page, "auth", "logout")
    execute(logout)
    expect(answer(logout)).to_contain_text("204")
    expect(session).to_be_hidden()
    execute(me)
    expect(answer(me)).to_contain_text("401")
    expect(answer(me)).to_contain_text("token_required")


def test_the_page_keeps_tokens_in_memory_only(page, site):
    page.goto(f"{site}/docs")
    sign_in(page)

    assert stored(page) == '[{},{},""]'
    page.reload()
    expect(page.locator("#operations-auth-login")).to_be_visible()
    expect(page.locator("#session")).to_be_hidden()


def test_a_session_that_ended_elsewhere_is_forgotten_at_the_first_refusal(page, site):
    page.goto(f"{site}/docs")
    sign_in(page)
    end = opened(page, "auth", "endSessions")
    execute(end)
    expect(answer(end)).to_contain_text("204")

    me = opened(page, "users", "getMe")
    execute(me)
    expect(answer(me)).to_contain_text("session_revoked")
    expect(page.locator("#session")).to_be_hidden()


def test_a_token_that_is_typed_in_is_not_stored_either(page, site):
    page.goto(f"{site}/docs")
    page.get_by_role("button", name="Authorize").click()
    form = page.locator(".auth-container").first
    form.locator("input").fill("not.a.token")
    form.get_by_role("button", name="Apply credentials").click()
    expect(page.locator("#session")).to_have_text("Using the token you entered")
    assert stored(page) == '[{},{},""]'

    form.get_by_role("button", name="Remove authorization").click()
    expect(page.locator("#session")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_follow_the_colour_scheme(browser, site, tmp_path, scheme):
    page = browser.new_page(color_scheme=scheme)
    wrong = complaints(page)
    for path in ("/docs", "/errors"):
        page.goto(site + path)
        heading = page.get_by_role("heading", level=1)
        expect(heading).to_be_visible()
        assert is_light(page.locator("body"), "backgroundColor") == (scheme == "light")
        assert is_light(heading, "color") == (scheme == "dark")
        page.screenshot(path=tmp_path / f"{path[1:]}.png")
    page.close()
    assert wrong == []


def test_the_type_of_a_problem_opens_the_list_at_its_code(page, site):
    wrong = complaints(page)
    page.goto(f"{site}/errors#token_expired")

    expect(page.locator("article:target")).to_contain_text("The token has expired.")
    expect(page.locator("article:target")).to_be_in_viewport()
    assert wrong == []


def test_a_link_to_an_operation_opens_it(page, site):
    page.goto(f"{site}/docs#/users/getMe")
    operation = page.locator("#operations-users-getMe")

    expect(operation.get_by_role("button", name="Try it out")).to_be_visible()
    expect(operation.locator(".opblock-summary-control")).to_be_in_viewport()
