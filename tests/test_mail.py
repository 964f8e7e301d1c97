import logging
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from flask import Flask
from jinja2 import UndefinedError

from project import mail
from project.environment import ConfigError
from tests.mailing_app import LINK, make_app, parse, part

TEMPLATES = {
    "verify_email": "24 hours",
    "already_registered": "",
    "reset_password": "30 minutes",
    "invitation": "7 days",
    "confirm_email": "30 minutes",
    "email_change_requested": "30 minutes",
    "email_changed": "",
    "password_changed": "",
    "sessions_ended": "",
}
WITH_LINK = ["verify_email", "reset_password", "invitation", "confirm_email"]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    with make_app(tmp_path) as app:
        yield app


def written(app: Flask) -> EmailMessage:
    """The only mail in the outbox, parsed from the bytes of its file."""
    (path,) = app.extensions["settings"].outbox.glob("*.eml")
    return parse(path.read_bytes())


@pytest.mark.parametrize(
    "to",
    [
        "ann@example.com\r\nBcc: eve@example.com",
        "ann@example.com\nBcc: eve@example.com",
        "ann@example.com, eve@example.com",
        "ann@example.com>",
        "Ann <ann@example.com>",
        "ann@example.com (Ann)",
        "friends: ann@example.com;",
        "ann@",
        "ann",
        "",
    ],
)
def test_anything_but_one_address_is_refused(app, to):
    with pytest.raises(ValueError, match="exactly one address"):
        mail.send("password_changed", to=to)
    assert not app.extensions["settings"].outbox.exists()


def test_a_subject_with_a_line_break_is_refused(app):
    message = mail.Message("id", "x", "ann@example.com", "Hello\r\nBcc: eve@example.com", "text\n", "html\n", {})
    with pytest.raises(ValueError, match="linefeed or carriage return"):
        mail._compose(message)


def test_a_value_cannot_pretend_to_be_a_line_of_ours(app):
    mail.send("verify_email", to="ann@example.com", link="http://x/\r\n\r\nhttps://evil.example\u2028")
    lines = part(written(app), "plain").get_content().splitlines()
    assert "https://evil.example" not in lines
    assert "http://x/    https://evil.example " in lines


def test_a_template_that_lacks_a_value_is_an_error_and_not_a_gap(app):
    with pytest.raises(UndefinedError):
        mail.send("verify_email", to="ann@example.com")


@pytest.mark.parametrize(("template", "validity"), TEMPLATES.items())
def test_each_mail_says_for_whom_it_is_and_how_long_it_is_good_for(app, template, validity):
    mail.send(template, to="ann@example.com", link=LINK)
    message = written(app)
    assert message["To"] == "ann@example.com"
    assert message["From"] == "Project <no-reply@localhost>"
    assert message["Subject"]
    for subtype in ("plain", "html"):
        content = " ".join(part(message, subtype).get_content().split())
        assert "Project" in content
        assert "ann@example.com" in content
        assert validity in content
        assert "If " in content, "it says what to do if one did not ask for it"


@pytest.mark.parametrize("template", WITH_LINK)
def test_the_link_stands_alone_on_a_line_that_no_encoding_broke(app, template):
    mail.send(template, to="ann@example.com", link=LINK)
    text = part(written(app), "plain")
    assert text["Content-Transfer-Encoding"] == "7bit"
    assert text.get_content().splitlines().count(LINK) == 1
    (path,) = app.extensions["settings"].outbox.glob("*.eml")
    assert f"\n\n{LINK}\n\n".encode() in path.read_bytes()


@pytest.mark.parametrize("template", set(TEMPLATES) - set(WITH_LINK))
def test_a_notice_carries_no_token(app, template):
    mail.send(template, to="ann@example.com", link=LINK)
    message = written(app)
    assert "token" not in part(message, "plain").get_content()
    assert "token=" not in part(message, "html").get_content()


@pytest.mark.parametrize("template", TEMPLATES)
def test_html_parts_load_nothing_from_elsewhere(app, template):
    mail.send(template, to="ann@example.com", link=LINK)
    html = part(written(app), "html").get_content()
    assert "color-scheme" in html
    for loading in ("<img", "<link", "<script", "url(", "src=", "@import"):
        assert loading not in html


def test_html_parts_escape_what_they_are_given(app):
    mail.send("verify_email", to="ann@example.com", link='http://x/"><script>')
    html = part(written(app), "html").get_content()
    assert "<script>" not in html
    assert "http://x/&#34;&gt;&lt;script&gt;" in html


def test_text_that_is_not_ascii_stays_as_it_is(app):
    mail.send("verify_email", to="ann@example.com", link="http://x/ü")
    text = part(written(app), "plain")
    assert text["Content-Transfer-Encoding"] == "8bit"
    assert "http://x/ü" in text.get_content().splitlines()


def test_a_mail_is_marked_as_automatic_and_has_an_id_and_a_date(tmp_path):
    with make_app(tmp_path, MAIL_FROM="Shop <mail@shop.example>") as app:
        mail.send("password_changed", to="ann@example.com")
        message = written(app)
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@shop.example>")
    assert message["Date"].datetime.utcoffset() is not None
    assert len(message.items()) == len(set(message.keys()))


def test_files_sort_by_time_and_are_for_the_owner_only(app):
    outbox = app.extensions["settings"].outbox
    names: list[str] = []
    for template in TEMPLATES:
        mail.send(template, to="ann@example.com", link=LINK)
        names += sorted(path.name for path in outbox.iterdir() if path.name not in names)
    assert names == sorted(names)
    assert len(names) == len(TEMPLATES)
    assert {path.stat().st_mode & 0o777 for path in outbox.iterdir()} == {0o600}
    assert outbox.stat().st_mode & 0o777 == 0o700


def test_a_mail_that_is_written_twice_is_one(app):
    message = mail._render("password_changed", to="ann@example.com", context={})
    for _ in range(2):
        app.extensions["mail"](message, mail._compose(message))
    assert written(app)["Message-ID"].partition("@")[0] == f"<{message.id.rpartition('-')[2]}"
    assert len(list(app.extensions["settings"].outbox.iterdir())) == 1


def test_the_log_names_the_file_and_never_the_address(app, caplog):
    with caplog.at_level(logging.INFO, "project.mail"):
        mail.send("verify_email", to="ann@example.com", link=LINK)
    (record,) = caplog.records
    (path,) = app.extensions["settings"].outbox.glob("*.eml")
    assert (record.message, record.template, record.file) == ("mail_written", "verify_email", str(path))
    assert "ann" not in str(record.__dict__)
    assert "token" not in str(record.__dict__)


def test_the_memory_backend_keeps_what_was_sent(tmp_path):
    with make_app(tmp_path, MAIL_URL="memory:") as app:
        mail.send("verify_email", to="ann@example.com", link=LINK)
        (message,) = app.extensions["outbox"]
    assert (message.template, message.to) == ("verify_email", "ann@example.com")
    assert message.subject == "Confirm your e-mail address"
    assert message.context == {"link": LINK}
    assert LINK in message.text.splitlines()
    assert message.html.startswith("<!doctype html>")


def test_a_link_keeps_its_token_in_the_fragment(tmp_path):
    with make_app(tmp_path, APP_URL="https://app.example.com/"):
        assert mail.app_link("/invitation", "a-_b") == "https://app.example.com/invitation#token=a-_b"


@pytest.mark.parametrize(
    "url",
    [
        "smtp://",
        "smtp://user@mail.example",
        "smtp://mail.example:port",
        "smtp://mail.example:99999",
        "smtp://mail.example?starttls=maybe",
        "smtp://mail.example?tls=on",
        "smtp://mail.example?starttls",
        "smtp://[mail.example",
    ],
)
def test_a_wrong_mail_url_stops_the_start_without_showing_its_value(tmp_path, url):
    with pytest.raises(ConfigError) as failure, make_app(tmp_path, MAIL_URL=url):
        pass
    assert str(failure.value).startswith("MAIL_URL must be")
    assert "mail.example" not in str(failure.value)


@pytest.mark.parametrize(
    "sender",
    [
        "Project",
        "a@example.com, b@example.com",
        "Project <no-reply>",
        "a@example.com\r\nBcc: b@example.com",
        "<>",
    ],
)
def test_a_wrong_mail_from_stops_the_start(tmp_path, sender):
    with (
        pytest.raises(ConfigError, match="MAIL_FROM must be one address"),
        make_app(tmp_path, MAIL_FROM=sender),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "port", "encryption"),
    [
        ("smtp://mail.example", 25, "off"),
        ("smtp://u:p@mail.example", 587, "required"),
        ("smtp://u:p@mail.example:2525?starttls=off", 2525, "off"),
        ("smtp://mail.example?starttls=required", 25, "required"),
        ("smtps://u:p@mail.example", 465, "implicit"),
    ],
)
def test_a_password_demands_encryption_unless_told_otherwise(url, port, encryption):
    server = mail._smtp_server(url)
    assert (server.host, server.port, server.encryption) == ("mail.example", port, encryption)


def test_a_server_has_no_repr_that_could_reach_a_log():
    assert "secret" not in repr(mail._smtp_server("smtp://user:secret@mail.example"))
