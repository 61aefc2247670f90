"""Files and functions stay small enough to be read in one go."""

import ast

from tidy.sources import files_with, parsed, relative

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70

# Files that may be longer, with the number of lines they may have and the reason. Numbers only go down.
LONGER_FILES = {
    "python/pagedkv/_core.pyi": (1500, "the one reference page of the Rust module"),
}


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` to its end, its docstring not counted."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        docstring = node.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_no_file_is_longer_than_its_budget():
    """One noun a file; a file that grows past the budget holds two."""
    too_long = []
    for path in files_with(".py", ".pyi", ".rs", ".cu", ".cuh", ".h"):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        budget = LONGER_FILES.get(relative(path), (MAX_FILE_LINES, ""))[0]
        if num_lines > budget:
            too_long.append(f"{relative(path)}: {num_lines} lines, at most {budget}")
    assert not too_long, "\n".join(["split these files:", *too_long])


def test_no_python_function_is_longer_than_its_budget():
    """The same for functions (clippy counts those of the crates: clippy.toml)."""
    too_long = []
    for path in files_with(".py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = function_lines(node)
                if num_lines > MAX_FUNCTION_LINES:
                    where = f"{relative(path)}:{node.lineno}"
                    too_long.append(f"{where} {node.name}: {num_lines} lines")
    assert not too_long, "\n".join([f"over {MAX_FUNCTION_LINES} lines:", *too_long])
