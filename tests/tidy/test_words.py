"""What no file of the repository contains."""

import re

import pytest

from tidy.sources import relative, text_files

# Spelled in parts, so that this file does not contain them.
BANNED = {
    "a note to self instead of an issue": re.compile(
        r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b"
    ),
    "a path of somebody's machine": re.compile(r"(?<![\w.{}$-])/(home|root|Users|work|tmp)/\w"),
    "a merge conflict": re.compile(r"^(<{7}|>{7})( |$)"),
    "white space at the end of a line": re.compile(r"[ \t]+$"),
    "an emoji": re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]"),
}
# Tests of detokenization need every kind of Unicode.
UNICODE_TESTS = ("tests/", "rust/text/")


@pytest.mark.parametrize("reason", BANNED)
def test_no_line_contains(reason):
    """A line that would embarrass its reader fails here, with its place."""
    found = []
    for path in text_files():
        if reason == "an emoji" and relative(path).startswith(UNICODE_TESTS):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if BANNED[reason].search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join([f"{reason}:", *found])


def test_every_file_ends_with_one_newline():
    """Diffs stay free of end-of-file noise."""
    bad = []
    for path in text_files():
        content = path.read_bytes()
        if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
            bad.append(relative(path))
    assert not bad, bad
