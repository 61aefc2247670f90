"""Checks a built wheel: size, tag, contents, every Python at hand, a clean environment with one generation.

Usage: python tools/check_wheel.py dist/pagedkv-*.whl --uv UV --constraints requirements.lock
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "pagedkv"
MAX_BYTES = 15 * 2**20
NEWEST_GLIBC = (2, 28)
ABI3AUDIT = "abi3audit==0.0.26"
MINOR_VERSIONS = range(10, 20)
RUNTIME_DEPENDENCIES = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "tqdm",
    "jinja2",
}
# No part of a wheel, whatever the folder: tests, caches, built copies of the tree.
UNWANTED = re.compile(r"(^|/)(tests?|benches|tools|__pycache__)/|\.(pyc|rs|orig)$")

CORE_PROGRAM = """
import sys
from pagedkv import _core
assert "torch" not in sys.modules, "pagedkv._core imports torch"
print("  Python", sys.version.split()[0], "imports pagedkv._core", _core.VERSION)
"""

GENERATE_PROGRAM = """
import sys, time
start = time.perf_counter()
import pagedkv
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "transformers", "cupy") if name in sys.modules]
assert not heavy, f"import pagedkv imports {heavy}"
print(f"  import pagedkv: {seconds * 1000:.0f} ms, from {pagedkv.__file__}", flush=True)
from pagedkv import LLM, SamplingParams
with LLM("demo") as llm:
    (output,) = llm.generate(["Once upon a time"], SamplingParams(temperature=0.0, max_tokens=24), use_tqdm=False)
text = output.outputs[0].text
assert len(text.split()) >= 5, f"no text came out: {text!r}"
print("  Once upon a time" + text)
"""


class WheelError(Exception):
    """The wheel is not what users should get."""


def check_size_and_tag(wheel: Path) -> None:
    """At most MAX_BYTES, abi3 from Python 3.10, glibc 2.28 or older."""
    size = wheel.stat().st_size
    print(f"  {wheel.name}: {size / 2**20:.2f} MiB")
    if size > MAX_BYTES:
        message = f"the wheel has {size} bytes, at most {MAX_BYTES} are allowed"
        raise WheelError(message)
    if "-cp310-abi3-" not in wheel.name:
        message = f"the wheel's tag is not cp310-abi3: {wheel.name}"
        raise WheelError(message)
    if sys.platform == "linux":
        versions = [
            tuple(map(int, pair)) for pair in re.findall(r"manylinux_(\d+)_(\d+)", wheel.name)
        ]
        if not versions or min(versions) > NEWEST_GLIBC:
            message = f"the wheel's tag is not manylinux_2_28 or older: {wheel.name}"
            raise WheelError(message)


def expected_files() -> set[str]:
    """Every file of python/pagedkv but built and cached ones, as the wheel names them."""
    return {
        f"pagedkv/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in {".so", ".pyc"} and "__pycache__" not in path.parts
    }


def check_contents(wheel: Path) -> None:
    """The package whole, the extension, the licence, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename for info in archive.infolist() if not info.is_dir()}
        metadata_name = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    required = expected_files() | {
        f"pagedkv/{name}" for name in ("py.typed", "_core.pyi", "_core.abi3.so")
    }
    problems = [f"missing: {name}" for name in sorted(required - names)]
    problems += [f"unwanted: {name}" for name in sorted(names) if UNWANTED.search(name)]
    outside = [
        name
        for name in sorted(names)
        if not name.startswith("pagedkv/") and ".dist-info/" not in name
    ]
    problems += [f"outside of the package: {name}" for name in outside]
    if not any(name.endswith("licenses/LICENSE") for name in names):
        problems.append("missing: the licence")
    requirements = re.findall(
        r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, flags=re.MULTILINE
    )
    if set(requirements) != RUNTIME_DEPENDENCIES:
        problems.append(f"run-time dependencies are {sorted(requirements)}")
    if problems:
        raise WheelError("\n".join(problems))
    print(f"  {len(names)} files, all there and no others")


def interpreters_at_hand() -> list[str]:
    """One CPython per minor version from 3.10 on: from the PATH and from where pyenv and uv keep theirs."""
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions"
    managed = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python"))
    found = []
    for minor in MINOR_VERSIONS:
        name = f"python3.{minor}"
        candidates = [f"/usr/bin/{name}", f"/usr/local/bin/{name}"]
        candidates += sorted(map(str, pyenv.glob(f"*/bin/{name}")))
        candidates += sorted(map(str, managed.glob(f"*/bin/{name}")))
        candidates.append(shutil.which(name) or "")  # last: it may be a launcher that finds nothing
        found += [path for path in candidates if path and is_usable(path, minor)][:1]
    return found


def is_usable(path: str, minor: int) -> bool:
    """Whether a path starts a CPython 3.`minor` with a GIL (abi3 wheels do not load into a free-threaded build)."""
    program = (
        "import sys, sysconfig; print(sys.implementation.name, sys.version_info[1],"
        " sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
    )
    try:
        answer = subprocess.run(
            [path, "-c", program], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.split() == ["cpython", str(minor), "0"]


def run_in(environment: Path, program: str) -> None:
    """Runs a program with an environment's Python, outside of the source tree and of the user's settings."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"HF_HUB_OFFLINE": "1"}
    command = [str(environment / "bin" / "python"), "-I", "-c", program]
    subprocess.run(command, cwd=environment, env=variables, check=True)


def make_environment(uv: str, environment: Path, python: str, *arguments: str) -> None:
    """A new environment with what `arguments` tells uv to install."""
    python_path = environment / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", python, str(environment)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python_path), *arguments]
    subprocess.run(install, check=True)


def folder_beside_the_cache(uv: str) -> Path:
    """Where environments can link to uv's cache (another file system would cost a copy of torch)."""
    command = [uv, "cache", "dir"]
    cache = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return Path(cache).parent


def main() -> int:
    """Runs all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--uv", default="uv", help="the uv to make environments with")
    parser.add_argument("--constraints", type=Path, help="versions for the clean environment")
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve()
    start = time.monotonic()
    try:
        check_size_and_tag(wheel)
        check_contents(wheel)
        beside = folder_beside_the_cache(arguments.uv)
        with tempfile.TemporaryDirectory(prefix="pagedkv-wheel-", dir=beside) as folder:
            audit = [arguments.uv, "tool", "run", ABI3AUDIT, "--strict", str(wheel)]
            subprocess.run(audit, check=True)
            for python in interpreters_at_hand():
                environment = Path(folder) / Path(python).name
                make_environment(
                    arguments.uv, environment, python, "--no-deps", str(wheel), "numpy"
                )
                run_in(environment, CORE_PROGRAM)
            constraints = (
                ["--constraint", str(arguments.constraints.resolve())]
                if arguments.constraints
                else []
            )
            print("  a clean environment with the wheel and its dependencies", flush=True)
            environment = Path(folder) / "clean"
            make_environment(arguments.uv, environment, sys.executable, str(wheel), *constraints)
            run_in(environment, GENERATE_PROGRAM)
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: {error.cmd[0]} ended with status {error.returncode}", file=sys.stderr)
        return 1
    print(f"  the wheel is good ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
