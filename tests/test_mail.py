import email
import email.policy
import logging
import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage, MIMEPart
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from flask import Flask
from jinja2 import UndefinedError

from project import mail
from project.config import load_config
from project.environment import ConfigError
from tests.servers.process import free_port

LINK = "http://localhost:5173/verify-email#token=" + "q7-_" * 22
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


@contextmanager
def make_app(data_dir: Path, **env: str) -> Iterator[Flask]:
    """An application that has settings and mail, and nothing else."""
    app = Flask("small")
    app.extensions["settings"] = load_config({"APP_ENV": "testing", "DATA_DIR": str(data_dir), **env})
    mail.init_app(app)
    with app.app_context():
        yield app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    with make_app(tmp_path) as app:
        yield app


def written(app: Flask) -> EmailMessage:
    """The only mail in the outbox, parsed from the bytes of its file."""
    (path,) = app.extensions["settings"].outbox.glob("*.eml")
    return parse(path.read_bytes())


def parse(data: bytes) -> EmailMessage:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def part(message: EmailMessage, subtype: str) -> MIMEPart:
    found = message.get_body((subtype,))
    assert found is not None
    return found


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
    message = mail.Message("x", "ann@example.com", "Hello\r\nBcc: eve@example.com", "text\n", "html\n", {})
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


# --- with a real SMTP server ------------------------------------------------------------------------------


class Mailbox:
    """What an SMTP server received."""

    def __init__(self, refusal: str = "") -> None:
        self.envelopes: list[Envelope] = []
        self.sessions: list[Session] = []
        self.logins: list[LoginPassword] = []
        self.refusal = refusal

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.refusal:
            return self.refusal
        self.envelopes.append(envelope)
        self.sessions.append(session)
        return "250 OK"

    def authenticate(self, *arguments: Any) -> AuthResult:
        login = arguments[-1]
        self.logins.append(login)
        return AuthResult(success=(login.login, login.password) == (b"user", b"p@ss/word"))

    def message(self) -> EmailMessage:
        """The only mail that arrived."""
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        return parse(envelope.content)


@contextmanager
def serving(mailbox: Mailbox, **options: Any) -> Iterator[int]:
    """Run an SMTP server and yield its port."""
    port = free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port, server_hostname="localhost", **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its self-signed certificate for 127.0.0.1."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(path)]
    made = subprocess.run(
        [openssl, "req", "-x509", *key, "-days", "2", *names], check=True, capture_output=True, text=True
    )
    path.write_text(path.read_text() + made.stdout)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make clients of this process trust the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


def test_no_password_goes_to_a_server_that_offers_no_encryption(tmp_path):
    mailbox = Mailbox()
    with (
        serving(mailbox, authenticator=mailbox.authenticate, auth_require_tls=False) as port,
        make_app(tmp_path, MAIL_URL=f"smtp://user:p%40ss%2Fword@127.0.0.1:{port}"),
        pytest.raises(smtplib.SMTPNotSupportedError),
    ):
        mail.send("password_changed", to="ann@example.com")
    assert not mailbox.logins
    assert not mailbox.envelopes


def test_no_password_goes_to_a_server_with_an_unknown_certificate(tmp_path, tls):
    mailbox = Mailbox()
    with (
        serving(mailbox, tls_context=tls, authenticator=mailbox.authenticate) as port,
        make_app(tmp_path, MAIL_URL=f"smtp://user:p%40ss%2Fword@127.0.0.1:{port}"),
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        mail.send("password_changed", to="ann@example.com")
    assert not mailbox.logins
    assert not mailbox.envelopes


def test_a_password_is_sent_after_starttls(tmp_path, tls, trusted):
    mailbox = Mailbox()
    with (
        serving(mailbox, tls_context=tls, authenticator=mailbox.authenticate) as port,
        make_app(tmp_path, MAIL_URL=f"smtp://user:p%40ss%2Fword@127.0.0.1:{port}"),
    ):
        mail.send("password_changed", to="ann@example.com")
    assert mailbox.logins == [LoginPassword(b"user", b"p@ss/word")]
    assert mailbox.sessions[0].ssl is not None
    assert mailbox.message()["Subject"] == "Your password was changed"


def test_smtps_is_encrypted_from_the_first_byte(tmp_path, tls, trusted):
    mailbox = Mailbox()
    with serving(mailbox, ssl_context=tls) as port, make_app(tmp_path, MAIL_URL=f"smtps://127.0.0.1:{port}"):
        mail.send("password_changed", to="ann@example.com")
    assert mailbox.message()["To"] == "ann@example.com"


def test_what_arrives_is_what_was_meant(tmp_path):
    mailbox = Mailbox()
    with serving(mailbox) as port, make_app(tmp_path, MAIL_URL=f"smtp://127.0.0.1:{port}"):
        mail.send("verify_email", to="ann@example.com", link=LINK)
    (envelope,) = mailbox.envelopes
    assert isinstance(envelope.content, bytes)
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@localhost", ["ann@example.com"])
    assert f"\r\n\r\n{LINK}\r\n\r\n".encode() in envelope.content
    assert part(mailbox.message(), "plain")["Content-Transfer-Encoding"] == "7bit"
    assert "BODY=8BITMIME" not in envelope.mail_options


def test_eight_bit_text_is_announced(tmp_path):
    mailbox = Mailbox()
    with serving(mailbox) as port, make_app(tmp_path, MAIL_URL=f"smtp://127.0.0.1:{port}"):
        mail.send("verify_email", to="ann@example.com", link="http://x/ü")
    assert "BODY=8BITMIME" in mailbox.envelopes[0].mail_options
    assert "http://x/ü" in part(mailbox.message(), "plain").get_content().splitlines()


def test_a_refusal_by_the_server_raises(tmp_path):
    with (
        serving(Mailbox(refusal="451 try later")) as port,
        make_app(tmp_path, MAIL_URL=f"smtp://127.0.0.1:{port}"),
        pytest.raises(smtplib.SMTPDataError),
    ):
        mail.send("password_changed", to="ann@example.com")


def test_a_server_that_is_away_raises(tmp_path):
    with (
        make_app(tmp_path, MAIL_URL=f"smtp://127.0.0.1:{free_port()}"),
        pytest.raises(ConnectionRefusedError),
    ):
        mail.send("password_changed", to="ann@example.com")


def test_a_failing_goodbye_does_not_make_the_mail_look_unsent(tmp_path):
    mailbox = Mailbox()

    async def hang_up(server: SMTP, _session: Session, _envelope: Envelope) -> str:
        assert server.transport is not None
        server.transport.close()
        return "221 Bye"

    mailbox.handle_QUIT = hang_up  # type: ignore[attr-defined]
    with serving(mailbox) as port, make_app(tmp_path, MAIL_URL=f"smtp://127.0.0.1:{port}"):
        mail.send("password_changed", to="ann@example.com")
    assert len(mailbox.envelopes) == 1
