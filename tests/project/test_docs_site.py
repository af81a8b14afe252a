"""The documentation site builds without a warning and without the network, and shows every public name."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("diffsim", "robotics_envs", "solvers")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name_and_no_other(package):
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    named = re.findall(rf"^::: {package}\.(\S+)$", page, re.M)
    assert sorted(named) == sorted(importlib.import_module(package).__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    missing = [
        name
        for name in ("mkdocs", "material", "mkdocstrings_handlers", "nbconvert")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (extra docs)")
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"  # whoever asks the network gets no answer
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), nowhere)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **proxies, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """Addresses that a page loads by itself, those its links lead to, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.anchors.add(values.get("id", ""))
        if tag == "a":
            self.links.append(values.get("href", ""))
        elif tag == "link":
            self.loaded += (
                [values.get("href", "")] if values.get("rel") not in ("canonical", "next", "prev") else []
            )
        else:
            self.loaded += [values[name] for name in ("src", "data", "poster", "srcset") if name in values]


def pages(site):
    return {path: Loads(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_pages_load_nothing_from_elsewhere(site):
    for path, page in pages(site).items():
        outside = [address for address in page.loaded if re.match(r"(https?:)?//", address)]
        assert outside == [], path
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^'\")]*", text), sheet


def test_links_and_pictures_lead_somewhere(site):
    for path, page in pages(site).items():
        if path.name == "404.html":  # its addresses begin at the root of a server
            continue
        if path.parent.name == "report":  # a page by itself, beside whose file in docs/ its Markdown lies
            assert (ROOT / "docs" / "report" / "report.md").exists()
            page.links = [address for address in page.links if address != "report.md"]
        for address in (*page.links, *page.loaded):
            if not re.match(r"[a-z]+:|//|#|$", address):
                target = path.parent / address.partition("#")[0].partition("?")[0]
                assert target.exists(), (path, address)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_anchor_and_a_description(site, package):
    page = (site / "api" / f"{package}.html").read_text(encoding="utf-8")
    anchors = Loads(page).anchors
    missing = [
        name for name in importlib.import_module(package).__all__ if f"{package}.{name}" not in anchors
    ]
    assert missing == []
    assert ":class:`" not in page
    assert ":func:`" not in page


def test_notebooks_and_the_readme_are_pages(site):
    assert "backpropagating through differentiable simulators" in (site / "index.html").read_text()
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        page = (site / "examples" / f"{notebook.stem}.html").read_text()
        assert "<img" in page
    assert (site / "source" / "examples" / "cartpole.py.txt").exists()
