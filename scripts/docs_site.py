"""Hooks of MkDocs (mkdocs.yml): pages from files outside of docs/, and docstrings with reStructuredText roles.

The same Markdown is read in a checkout, so its links name the files of the repository. Here the README, the
contributing guide, the changelog and the notebooks become pages, and other files that a page links to are copied
beside the pages.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr|exc|obj):`~?([^`]+)`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere, and the files that pages link to."""
    sources = {f.src_uri: ROOT / "docs" / f.src_uri for f in files if f.src_uri.endswith(".md")}
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=_with_links(ROOT / source, files, config)))
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        _add_notebook(notebook, files, config)
    for path in sources.values():
        _with_links(path, files, config)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links that leave docs/ to the copies."""
    if page.file.generated_by is not None:
        return markdown
    return _rewritten(markdown, ROOT / "docs" / page.file.src_uri, page.file.src_uri, files, config)


def _with_links(path: Path, files: Files, config: Any) -> str:
    """The text of a Markdown file with its links changed; what they lead to is added to the site."""
    uri = PAGES.get(
        path.relative_to(ROOT).as_posix(), path.relative_to(ROOT).as_posix().removeprefix("docs/")
    )
    return _rewritten(path.read_text(encoding="utf-8"), path, uri, files, config)


def _rewritten(text: str, path: Path, uri: str, files: Files, config: Any) -> str:
    def link(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups()
        label = _LINK.sub(link, label)
        file = Path(os.path.normpath(path.parent / target))
        if not file.exists() or not file.is_relative_to(ROOT):
            return match.group()  # MkDocs reports it
        if file.is_dir():
            return label
        to = _uri(file, files, config)
        return f"{image}[{label}]({posixpath.relpath(to, posixpath.dirname(uri) or '.')}{anchor or ''})"

    return _LINK.sub(link, text)


def _uri(file: Path, files: Files, config: Any) -> str:
    """Where a file of the repository is in the site."""
    name = file.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if file.suffix == ".ipynb":
        return name.removesuffix(".ipynb") + ".md"
    # As text, so that a browser shows it.
    uri = f"source/{name}.txt"
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, content=file.read_text(encoding="utf-8")))
    return uri


def _add_notebook(path: Path, files: Files, config: Any) -> None:
    from nbconvert import MarkdownExporter

    name = path.stem
    resources = {"unique_key": name, "output_files_dir": name}
    text, resources = MarkdownExporter().from_filename(str(path), resources=resources)
    files.append(File.generated(config, f"examples/{name}.md", content=text))
    for output, data in resources["outputs"].items():
        files.append(File.generated(config, f"examples/{output}", content=data))


class PlainRoles(griffe.Extension):
    """Docstrings name other objects as ``:class:`x```, which Markdown does not know: shown as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
