import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from project import mail
from tests.mailing_app import LINK, make_app, parse, part
from tests.servers.process import free_port


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
