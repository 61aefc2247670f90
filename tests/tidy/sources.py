"""The files of the repository, as the form tests see them."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "pagedkv"
SKIPPED_FOLDERS = {".git", ".venv", ".uv", "target", "dist", "build", "node_modules"}
SKIPPED_FILES = {"Cargo.lock", "requirements.lock", "LICENSE"}
TEXT_SUFFIXES = {
    *(".c", ".cfg", ".cu", ".cuh", ".h", ".hpp", ".json", ".jinja", ".md", ".py", ".pyi", ".rs"),
    *(".sh", ".toml", ".txt", ".yaml", ".yml"),
}
TEXT_NAMES = {"Makefile", "run", "Dockerfile", ".gitignore", ".clang-format"}


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """All files that git tracks or would add; where there is no git, all files outside of built folders."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not is_built(path)]
    return tuple(sorted(path for path in paths if path.is_file()))


def is_built(path: Path) -> bool:
    """Whether a path lies in a folder of tools or of built files."""
    parts = path.relative_to(ROOT).parts
    return any(part in SKIPPED_FOLDERS or part.endswith(("_cache", "__")) for part in parts[:-1])


def text_files() -> list[Path]:
    """The files that people wrote, links left out."""
    return [
        path
        for path in tracked_files()
        if (path.suffix in TEXT_SUFFIXES or path.name in TEXT_NAMES)
        and path.name not in SKIPPED_FILES
        and not path.is_symlink()
    ]


def files_with(*suffixes: str) -> list[Path]:
    """The text files with one of these suffixes."""
    return [path for path in text_files() if path.suffix in suffixes]


def relative(path: Path) -> str:
    """The name by which a message calls a file."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
