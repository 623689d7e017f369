"""Pages with a list of facts in a real browser: shared by the tests of the audit's page and of a study's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; needs the package playwright."""
    from playwright import sync_api

    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(context: Any, address: str) -> Any:
    """The page once its list is there; its requests are listed, and its errors."""
    page = context.new_page()
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.address = address
    page.goto(address)
    page.wait_for_selector("#browser[data-ready=yes]")
    return page


def shown(page: Any) -> int:
    """How many facts the list has."""
    return int(page.inner_text("#facts-count").split(" of ")[0].replace(",", ""))
