"""What the documents say exists."""

import re

from tidy.sources import PACKAGE, ROOT, files_with, relative

MAKE_TARGETS = set(
    re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
)


def code_of(text: str) -> str:
    """The code spans and code blocks of a Markdown text."""
    fenced = re.findall(r"^```.*?$(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4}|\t).*$", text, flags=re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", text)
    return "\n".join([*fenced, *indented, *spans])


def test_make_commands_in_the_documents_exist():
    """A command that a reader copies works."""
    unknown = []
    for path in files_with(".md"):
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", code_of(path.read_text("utf-8"))):
            if target not in MAKE_TARGETS:
                unknown.append(f"{relative(path)}: make {target}")
    assert not unknown, unknown


def test_scripts_in_the_documents_exist():
    """`python benches/step.py` names a file of the repository."""
    missing = []
    for path in files_with(".md"):
        for script in re.findall(r"\bpython3? ([\w./-]+\.py)\b", code_of(path.read_text("utf-8"))):
            if "/" in script and not (ROOT / script).is_file():
                missing.append(f"{relative(path)}: {script}")
    assert not missing, missing


def test_relative_links_resolve():
    """No link of a document leads nowhere."""
    broken = []
    for path in files_with(".md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{relative(path)}: {target}")
    assert not broken, broken


def test_the_changelog_has_a_section_for_the_version():
    """A version is released with its list of changes."""
    manifest = (ROOT / "Cargo.toml").read_text("utf-8")
    version = re.search(r'^version = "([^"]+)"', manifest, flags=re.MULTILINE)[1]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_cuda_source_is_linked_into_the_package():
    """A file of cuda/ without its link would be missing from the wheel, and nobody would notice in a source tree."""
    sources = {path.name for path in (ROOT / "cuda").glob("*.cu*")}
    links = {path.name: path for path in (PACKAGE / "cuda").glob("*.cu*")}
    assert sources == set(links)
    for name, link in links.items():
        assert link.is_symlink(), name
        assert link.resolve() == ROOT / "cuda" / name, name
