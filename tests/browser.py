"""A real browser for tests of pages: the system's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# It may talk to our server and to nobody else.
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]
# A busy machine is slow, not broken.
PATIENCE = 20_000  # milliseconds
REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.effectiveDirective} blocked ${event.blockedURI} ${event.sample}`);
});
"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Run a headless browser until the block ends."""
    # Its sandbox refuses to work for root, which is what tests in a container often run as.
    arguments = [*ARGUMENTS, "--no-sandbox"] if os.geteuid() == 0 else ARGUMENTS
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def complaints(page: Page) -> list[str]:
    """Return a list that grows by whatever goes wrong on the page; to be called before it opens an address.

    Errors on the console, exceptions, requests that failed, and violations of the Content-Security-Policy.
    """
    found: list[str] = []
    page.add_init_script(REPORT_VIOLATIONS)
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("requestfailed", lambda request: found.append(f"{request.url}: {request.failure}"))
    return found
