"""The documentation site: it builds without a warning, and a reader's browser asks nobody else."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.support.docs_pages import DOCS, ROOT

EXTERNAL = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?://|https?:)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_page_is_built_with_its_generated_parts(site):
    for page in DOCS.rglob("*.md"):
        html = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        assert not re.search(r"<!-- generated: [^>]*-->\s*<!-- end", html), page
        assert "How it was measured" not in html or "<summary>How it was measured</summary>" in html, page


def test_a_reader_needs_no_network(site):
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        assert not EXTERNAL.search(page.read_text(encoding="utf-8")), page


def test_code_stays_out_of_the_site(site):
    assert not list(site.rglob("*.py"))


def test_links_of_other_files_into_the_docs_exist():
    """Python's docstrings and messages, README and the like name pages by their path."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = [ROOT / name for name in names.splitlines() if name.endswith((".py", ".md", ".toml", ".yaml"))]
    linked = {
        link
        for text in [*texts, ROOT / "Makefile"]
        if text.is_file()
        for link in re.findall(r"\bdocs/[\w/-]+\.(?:md|png|svg|json)\b", text.read_text(encoding="utf-8"))
    }
    assert linked and [link for link in sorted(linked) if not (ROOT / link).is_file()] == []


def test_the_docs_libraries_are_an_extra_that_dev_includes():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "tristage[collect,docs,serve]" in extras["dev"] and len(extras["docs"]) == 2
    plugins = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["plugins"]
    assert plugins == ["search"], "no plugin beyond what MkDocs and Material bring"
