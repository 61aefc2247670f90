"""Imports point one way, in Python and between the crates."""

import ast
import re

from tidy.sources import PACKAGE, ROOT, files_with, parsed, relative

# From the bottom up. A module may import its own package, modules of its own line, and those of the lines above it
# in this list (the layers below); never one further down. `__init__` and `__main__` stand above all.
LAYERS = [
    {"_core", "errors", "field_dicts", "json_files", "arrays", "pages"},
    {
        "beam_checks",
        "sampling_checks",
        "structured_outputs",
        "repetition_detection",
        "sampling_lists",
        "sampling_params",
        "beam_search_params",
        "generation_defaults",
        "logprobs",
        "outputs",
        "reasoning_config",
        "config",
        "catalog",
        "stats",
        "progress",
        "interrupts",
    },
    {
        "step_buffers",
        "attention",
        "text_stream",
        "token_bytes",
        "tokenizer",
        "prefix_report",
        "chat",
        "requests",
    },
    {"models", "thinking_markers", "sampling", "grammars"},
    {"prompt_logprobs"},
    {"kv_cache", "kv_sizing", "request_state", "step_events"},
    {"model_runner", "sequence_runner"},
    {"swap_space"},
    {"batch_runner"},
    {"startup", "sampling_fit", "admission"},
    {"engine"},
    {"shared_loop"},
    {"beam_search"},
    {"llm"},
    {"cli"},
]
LEVELS = {module: level for level, modules in enumerate(LAYERS) for module in modules}
TOP = len(LAYERS)

CRATES = {
    "core": set(),
    "text": {"pagedkv-core"},
    "cpu": set(),
    "bindings": {"pagedkv-core", "pagedkv-text", "pagedkv-cpu"},
}


def imported_modules(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and name (below `pagedkv`) of each module of the package that a file imports, wherever in the file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "pagedkv":
            names = [f"pagedkv.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found += [
            (node.lineno, name.split(".")[1]) for name in names if name.startswith("pagedkv.")
        ]
    return found


def module_name(path) -> str:
    """`attention/base.py` is part of `attention`, `llm.py` of `llm`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").removesuffix(".pyi")


def package_files():
    """The Python files of the package."""
    return [path for path in files_with(".py") if PACKAGE in path.parents]


def test_every_module_has_a_layer():
    """A new module is placed in LAYERS on purpose."""
    modules = {module_name(path) for path in package_files()} - {"__init__", "__main__", "demo"}
    assert modules <= set(LEVELS), f"not in LAYERS: {sorted(modules - set(LEVELS))}"


def test_python_imports_never_point_upward():
    """Decisions stand above loops: a lower layer knows nothing of the layers that use it."""
    upward = []
    for path in package_files():
        own = module_name(path)
        for line, imported in imported_modules(parsed(path)):
            if LEVELS.get(imported, -1) > LEVELS.get(own, TOP):
                upward.append(f"{relative(path)}:{line}: {own} imports {imported}")
    assert not upward, "\n".join(upward)


def test_modules_do_not_import_each_other_in_a_circle():
    """Modules of one layer may import each other one way only."""
    edges: dict[str, set[str]] = {}
    for path in package_files():
        own = module_name(path)
        edges.setdefault(own, set()).update(
            name for _, name in imported_modules(parsed(path)) if name in LEVELS and name != own
        )
    remaining = dict(edges)
    while leaves := [name for name, targets in remaining.items() if not targets & set(remaining)]:
        for name in leaves:
            del remaining[name]
    remaining.pop("__init__", None)
    remaining.pop("__main__", None)
    assert not remaining, f"a circle among {sorted(remaining)}"


def test_crates_depend_one_way():
    """Core knows no other crate; PyO3 and numpy appear in the bindings alone."""
    for crate, allowed in CRATES.items():
        manifest = (ROOT / "rust" / crate / "Cargo.toml").read_text(encoding="utf-8")
        dependencies = manifest.split("[dependencies]")[1].split("\n[")[0]
        names = set(re.findall(r"^([\w-]+)\s*[.=]", dependencies, flags=re.MULTILINE))
        assert {name for name in names if name.startswith("pagedkv-")} <= allowed, crate
        if crate != "bindings":
            assert not names & {"pyo3", "numpy"}, crate


def test_unsafe_is_forbidden_outside_the_kernels_and_the_bindings():
    """A wild pointer can only come from two crates."""
    for crate in ("core", "text"):
        root = (ROOT / "rust" / crate / "src" / "lib.rs").read_text(encoding="utf-8")
        assert "#![forbid(unsafe_code)]" in root, crate
