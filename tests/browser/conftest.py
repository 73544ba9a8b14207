"""A service, a browser, and what every page is watched for while a test runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
AXE = "axe-core@4.10.3"
# Screenshots are written where this is set, so that a test run leaves the tree as it was.
SHOTS = os.environ.get("THEMIS_SCREENSHOTS")
MAX_SHOT_BYTES = 150_000
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The service with one study for each thing to look at."""
    from browser.labelling_site import serve

    with serve(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.fail("needs a browser: no program named chromium on the PATH (Debian: apt-get install chromium)")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, site: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages of people who have nothing to do with each other; none of them may report an error."""
    contexts, problems = [], []

    def report(message: Any) -> None:
        # A connection that the test has cut is no mistake of the page, nor is a status that the test asks for.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def make(**settings: Any) -> Any:
        context = chromium.new_context(**{"viewport": DESKTOP, "base_url": site.url, **settings})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", report)
        page.on("pageerror", lambda error: problems.append(str(error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, fetched once into a folder for such things."""
    folder = Path(tempfile.gettempdir()) / "themis-tests" / AXE
    script = folder / "package" / "axe.min.js"
    if not script.is_file():
        if shutil.which("npm") is None:
            pytest.fail("needs npm to fetch axe-core")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", AXE, "--pack-destination", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.fail(f"axe-core could not be fetched: {done.stderr[-300:]}")
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return script.read_text()


@pytest.fixture
def shoot() -> Callable[..., None]:
    """Keeps a picture of a page for the documentation, if asked for."""

    def keep(page: Any, name: str, **settings: Any) -> None:
        if SHOTS:
            path = ROOT / "docs" / "images" / f"labelling-{name}.png"
            page.screenshot(path=path, animations="disabled", **settings)
            assert path.stat().st_size < MAX_SHOT_BYTES, f"{path} has {path.stat().st_size} bytes"

    return keep
