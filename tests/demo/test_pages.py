"""What the documents show of the bundled model is what it does."""

import contextlib
import io
import re

import pytest

from tidy.sources import ROOT

# A block of Python, and what the page says it prints, if it says so.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["docs/decoding.md", "docs/structured_outputs.md", "README.md"])
def test_a_page_read_from_top_to_bottom_prints_what_it_shows(page):
    blocks = BLOCK.findall((ROOT / page).read_text("utf-8"))
    assert sum(bool(shown) for _, shown in blocks) >= 2
    names = {}
    with contextlib.ExitStack() as stack:
        for code, shown in blocks:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, page, "exec"), names)
            if "llm" in names:
                stack.callback(names["llm"].close)
            if shown:
                assert printed.getvalue() == shown, code
