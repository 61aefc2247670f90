"""The command line."""

import io
import subprocess
import sys

import pytest

from pagedkv.cli import build_parser, main
from pagedkv.cli.generate import model_and_prompts
from pagedkv.cli.options import engine_arguments, parse_bytes, sampling_params
from pagedkv.cli.session import format_summary

SMALL = ["--kv-cache-memory", "8M", "--max-num-seqs", "4"]


def run(*arguments, **options):
    command = [sys.executable, "-m", "pagedkv", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=100, **options
    )


def options_of(*arguments):
    return build_parser().parse_args(arguments)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["--version"], ["models"]]
)
def test_help_version_and_models_are_quick_and_import_nothing_heavy(arguments):
    """Under 0.3 s on an idle machine; the best of five, with room for a busy one."""
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from pagedkv.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print(time.perf_counter() - start, *heavy, file=sys.stderr)"
    )
    runs = []
    for _ in range(5):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(done.stderr.split())
    assert {len(words) for words in runs} == {1}
    assert min(float(words[0]) for words in runs) < 0.3


def test_version_prints_the_packages():
    import pagedkv

    assert run("--version").stdout == f"pagedkv {pagedkv.__version__}\n"


def test_generate_streams_the_text_and_sums_up():
    """A process of its own, as a person starts it."""
    done = run("generate", "demo", "Once upon a time", "--max-tokens", "12", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
    assert len(done.stdout.split()) > 6
    for line in ("blocks", "slots", "sharing", "prefix cache", "first token", "tokens/s"):
        assert line in done.stderr


def test_quiet_prints_the_text_alone_and_a_seed_repeats_it(capsys):
    arguments = ["Once upon a time", "--max-tokens", "12", "--seed", "7", "--quiet", *SMALL]
    shown = []
    for model in ("demo", "--demo"):
        assert main(["generate", model, *arguments]) == 0
        shown.append(capsys.readouterr())
    assert shown[0].out == shown[1].out
    assert shown[0].out.startswith("Once upon a time")
    assert "KV cache" not in shown[0].err + shown[1].err


def test_generate_takes_its_prompt_from_a_pipe_and_samples_several(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Once\n"))
    assert main(["generate", "demo", "--n", "3", "--max-tokens", "5", "--quiet", *SMALL]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line[:8] for line in lines] == [f"[{i}] Once" for i in range(3)]


def test_chat_answers_line_by_line(capsys, monkeypatch):
    questions = iter(["Hello!", "Who are you?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(questions))
    assert main(["chat", "--demo", "--temperature", "0", "--system", "Be brief.", *SMALL]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.strip().splitlines()) >= 2
    assert "prompt tokens reused" in shown.err
    assert next(questions, None) is None


def test_ctrl_c_ends_a_command_with_its_status(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pagedkv.cli.generate.run", interrupted)
    assert main(["generate", "demo", "x"]) == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "/no/such/folder", "x"], "model folder '/no/such/folder' does not exist"),
        (["generate", "demo", "x", "--temperature", "-1"], "temperature must be non-negative"),
        (["generate", "demo", "x", "--block-size", "12"], "block_size must be one of 8, 16"),
        (["generate", "demo", ""], r"prompts[0] is empty"),
        (["chat"], "no model given"),
        (["chat", "demo", "--n", "2"], "--n must be 1, got 2"),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(arguments, message, capsys):
    assert main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("pagedkv: error: ")
    assert message in lines[-1]


def test_flags_become_parameters_and_settings():
    options = options_of(
        *("generate", "m", "p", "--n", "2", "--top-p", "0.9", "--stop", "a", "--stop", "b"),
        *("--kv-cache-memory", "2G", "--no-prefix-caching", "--max-num-seqs", "8"),
        *("--fuse-projections", "off", "--no-latent-kv-cache"),
    )
    params = sampling_params(options, {"temperature": 0.6, "top_p": 0.5, "max_tokens": 9})
    assert (params.n, params.top_p, params.stop, params.max_tokens) == (2, 0.9, ["a", "b"], 128)
    assert params.temperature == 0.6
    assert sampling_params(options, {}).temperature == 0.8
    assert engine_arguments(options) == {
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 2 << 30,
        "enable_prefix_caching": False,
        "fuse_projections": False,
        "latent_kv_cache": False,
    }


def test_with_demo_every_argument_is_a_prompt():
    assert model_and_prompts(options_of("generate", "--demo", "a", "b")) == ("demo", ["a", "b"])
    assert model_and_prompts(options_of("generate", "m", "b")) == ("m", ["b"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1024", 1024), ("1k", 1024), ("1.5M", 3 << 19), ("2GiB", 2 << 30), ("1TB", 1 << 40)],
)
def test_memory_may_be_written_with_a_unit(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "x", "1Q", "1e999", "nan"])
def test_what_is_no_memory_is_a_usage_error(text, capsys):
    with pytest.raises(SystemExit):
        options_of("generate", "m", "p", "--kv-cache-memory", text)
    assert "is no number of bytes; write 512M or 8G" in capsys.readouterr().err


def test_the_summary_of_an_engine_that_did_nothing_is_a_table_as_well():
    assert "KV cache" in format_summary({"num_blocks": 10, "block_size": 16}, [])
