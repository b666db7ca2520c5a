"""The built site is looked at: links inside of it lead somewhere, and a browser fetches nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
"""Tag -> attribute whose address a browser fetches by itself."""
IN_CSS = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


class _Page(HTMLParser):
    """What a page has: ids, links to follow, and addresses that are fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        followed = tag == "link" and {"canonical", "search"} & set(found.get("rel", "").split())
        if FETCHED.get(tag) in found and not followed:
            self.fetched.append(found[FETCHED[tag]])
        self.fetched += IN_CSS.findall(found.get("style", ""))


def problems(site: Path) -> list[str]:
    """One line per link that leads nowhere and per address outside of the site that a browser would fetch."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path.resolve()] = page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for address in page.fetched:
            parts = urlsplit(address)
            if parts.scheme == "data" or address.startswith("#"):
                continue
            if parts.scheme or parts.netloc:
                found.append(f"{name} fetches {address}")
            elif not (path.parent / unquote(parts.path)).is_file():
                found.append(f"{name} needs {address}, which is not there")
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{name} links to {address}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{name} links to {address}, which has no such heading")
    for path in sorted(site.rglob("*.css")):
        addresses = IN_CSS.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)} fetches {address}" for address in addresses]
    return found


def _finished(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        from sphinx.errors import SphinxError
        from sphinx.util.logging import getLogger

        found = problems(Path(app.outdir))
        for line in found:
            getLogger(__name__).warning(line)
        if found:
            raise SphinxError(f"{len(found)} bad links, listed above")


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", _finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
