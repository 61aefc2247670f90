"""Whatever a caller gets wrong raises before anything starts, and the next call works.

The fixture `llm` checks after every test that the engine is idle, holds no block, keeps its books and still answers.
"""

import json
import shutil

import numpy as np
import pytest

from pagedkv import LLM, ModelLoadError, SamplingParams
from pagedkv.errors import QueueFullError, RequestTooLongError, UnknownParameterError
from pagedkv.startup import demo_folder

SMALL = {"kv_cache_memory_bytes": 8 << 20, "max_num_seqs": 4}


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (["fine", ""], ValueError, r"prompts\[1\] is empty"),
        ([[1], []], ValueError, r"prompts\[1\] is empty"),
        ([[1], [2, -1]], ValueError, r"prompts\[1\] holds token id -1 at position 1"),
        ([[1], [1024]], ValueError, r"prompts\[1\] holds token id 1024 .* \(0 to 1023\)"),
        ([[2**63]], ValueError, r"prompts\[0\] holds token id 9223372036854775808"),
        ([[1, True]], TypeError, r"prompts\[0\] must hold ints, got True at position 1"),
        ([[1, "a"]], TypeError, r"prompts\[0\] must hold ints, got 'a' at position 1"),
        ([[1.0]], TypeError, r"prompts\[0\] must hold ints, got 1.0 at position 0"),
        (["fine", None], TypeError, r"prompts\[1\] must be a text, token ids or a dict"),
        (None, TypeError, "prompts is missing"),
        (["fine", "\ud800"], ValueError, r"prompts\[1\] is not valid Unicode"),
        (
            ["fine", [5] * 2048],
            ValueError,
            r"prompts\[1\]: This model's maximum context length is 2048",
        ),
        (
            ["fine", "word " * 9000],
            ValueError,
            "This model's maximum context length is 2048 tokens, but",
        ),
    ],
)
def test_a_bad_prompt_is_named_and_nothing_of_the_call_starts(llm, prompts, error, message):
    before = llm.stats()["num_requests"]
    with pytest.raises(error, match=message):
        llm.generate(prompts, use_tqdm=False)
    assert llm.stats()["num_requests"] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 17}, r"n must be at most max_num_seqs \(16\), got 17; raise max_num_seqs"),
        ({"logprobs": 21}, r"logprobs must be at most max_logprobs \(20\), got 21"),
        (
            {"stop_token_ids": [3, 1024]},
            "stop_token_ids holds token id 1024 at position 1, which is outside",
        ),
    ],
)
def test_parameters_are_checked_against_the_model(llm, arguments, message):
    with pytest.raises(ValueError, match=message):
        llm.generate(["a", "b"], SamplingParams(**arguments), use_tqdm=False)


def test_one_bad_set_of_parameters_stops_the_whole_call(llm):
    bad = SamplingParams()
    bad.top_p = 2.0
    with pytest.raises(ValueError, match="top_p must be in"):
        llm.generate(["a", "b"], [SamplingParams(), bad], use_tqdm=False)
    with pytest.raises(ValueError, match="sampling_params has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], [SamplingParams()], use_tqdm=False)


def test_extreme_but_legal_values_run(llm):
    for params in (
        SamplingParams(max_tokens=2**31 - 1, ignore_eos=False, stop_token_ids=list(range(1000))),
        SamplingParams(top_k=2**31 - 1, max_tokens=2),
        SamplingParams(temperature=1e30, max_tokens=2),
        SamplingParams(temperature=1.001e-5, max_tokens=2),
        SamplingParams(top_p=1e-9, min_p=1.0, max_tokens=2),
        SamplingParams(repetition_penalty=1e-30, max_tokens=2),
        SamplingParams(seed=-(2**63), max_tokens=2),
        SamplingParams(stop=["x" * 4096] * 64, max_tokens=2),
    ):
        (output,) = llm.generate("Once", params, use_tqdm=False)
        assert output.error is None, params


def test_min_tokens_that_leaves_no_token_is_refused():
    with LLM("demo", **SMALL) as llm:
        params = SamplingParams(min_tokens=1, max_tokens=4, stop_token_ids=list(range(1024)))
        with pytest.raises(ValueError, match="min_tokens leaves no token to generate"):
            llm.generate("Once", params, use_tqdm=False)


def test_priority_needs_its_policy(llm):
    with pytest.raises(ValueError, match="priority needs scheduling_policy='priority'"):
        llm.generate("Once", priority=1, use_tqdm=False)


def test_unknown_and_later_arguments_of_the_calls_are_named(llm):
    with pytest.raises(
        UnknownParameterError, match="'sampling_param'; did you mean 'sampling_params'"
    ):
        llm.generate("Once", sampling_param=SamplingParams())
    with pytest.raises(ValueError, match="lora_request='x' is not supported yet"):
        llm.generate("Once", lora_request="x")
    assert llm.generate("Once", lora_request=None, use_tqdm=False)


def tight_engine(**arguments):
    """A pool that holds one sequence of 64 tokens, and not two."""
    with LLM("demo", **SMALL) as probe:
        size = probe.llm_engine.parts.kv_size
    block_bytes = size.num_bytes // size.num_blocks
    return LLM(
        "demo",
        **{
            "kv_cache_memory_bytes": 6 * block_bytes,
            "max_model_len": 64,
            "max_num_seqs": 4,
            **arguments,
        },
    )


def test_a_request_that_can_never_fit_is_refused_with_the_numbers_and_takes_its_call_along():
    with tight_engine() as llm:
        params = SamplingParams(n=4, max_tokens=40)
        with pytest.raises(
            RequestTooLongError, match=r"prompts\[1\]: .*KV blocks .* the pool has 5"
        ):
            llm.generate([[5] * 20, [6] * 20], [SamplingParams(), params], use_tqdm=False)
        assert not llm.llm_engine.has_unfinished_requests()
        (output,) = llm.generate(
            [[5] * 20], SamplingParams(max_tokens=43, ignore_eos=True), use_tqdm=False
        )
        assert len(output.outputs[0].token_ids) == 43
        llm.llm_engine.check_invariants()


def test_a_full_queue_refuses_the_whole_call():
    with LLM("demo", max_num_waiting=3, **SMALL) as llm:
        with pytest.raises(QueueFullError, match=r"prompts\[3\]: 3 requests are waiting"):
            llm.generate([[5]] * 4, use_tqdm=False)
        assert not llm.llm_engine.has_unfinished_requests()
        assert len(llm.generate([[5]] * 3, use_tqdm=False)) == 3


def test_a_pool_too_small_for_one_sequence_says_what_to_raise_and_to_what():
    with pytest.raises(
        ValueError, match="cannot hold one sequence of max_model_len=2048"
    ) as caught:
        LLM("demo", kv_cache_memory_bytes=1 << 20)
    message = str(caught.value)
    needed = int(
        message.split("raise kv_cache_memory_bytes to at least ")[1].split(",", maxsplit=1)[0]
    )
    fitting = int(message.split("lower max_model_len to ")[1])
    LLM("demo", kv_cache_memory_bytes=needed, max_num_seqs=4).close()
    LLM("demo", kv_cache_memory_bytes=1 << 20, max_model_len=fitting, max_num_seqs=4).close()
    with pytest.raises(ValueError, match="cannot hold one sequence"):
        LLM("demo", kv_cache_memory_bytes=needed - 1)
    with pytest.raises(ValueError, match="cannot hold one sequence"):
        LLM("demo", kv_cache_memory_bytes=1 << 20, max_model_len=fitting + 16)


def test_a_context_longer_than_the_models_is_refused():
    with pytest.raises(ValueError, match="max_model_len=4096 is more than the 2048 tokens"):
        LLM("demo", max_model_len=4096)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there"),
        ({"dtype": "int7"}, "dtype must be one of auto, .* got 'int7'"),
        ({"attention_backend": "magic"}, "attention_backend must be one of .* got 'magic'"),
    ],
)
def test_settings_that_the_machine_lacks_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LLM("demo", **arguments)


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled model, to be damaged."""
    target = tmp_path / "model"
    shutil.copytree(demo_folder(), target)
    return target


def test_a_missing_folder_and_an_unreachable_hub_are_named():
    with pytest.raises(ModelLoadError, match="model folder '/no/such/folder' does not exist"):
        LLM("/no/such/folder")
    with pytest.raises(ModelLoadError, match=r"nobody/nothing.*cannot be reached|nobody/nothing"):
        LLM("nobody/nothing")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"is not a model: it has no config.json"):
        LLM(tmp_path)


def test_a_file_is_no_model(folder):
    with pytest.raises(ModelLoadError, match="is a file; give the folder"):
        LLM(folder / "config.json")


def test_truncated_weights_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"model.safetensors' is damaged or cut short"):
        LLM(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="weights in pickle format only"):
        LLM(folder)


def test_a_broken_configuration_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config.json' cannot be read as JSON"):
        LLM(folder)


def test_an_absent_tokenizer_is_named_with_the_way_out(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelLoadError, match="skip_tokenizer_init=True"):
        LLM(folder)
    with LLM(folder, skip_tokenizer_init=True, **SMALL) as llm:
        assert llm.generate([[5, 6]], use_tqdm=False)[0].finished
    with LLM(folder, tokenizer=demo_folder(), **SMALL) as llm:
        assert llm.generate("Once", use_tqdm=False)[0].finished


def test_a_tokenizer_of_another_model_is_found_out_when_it_matters(folder):
    """Its ids are outside the vocabulary: the prompt is refused, others run."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(
        {
            "id": 1024,
            "content": "<foreign>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
    )
    path.write_text(json.dumps(tokenizer))
    with LLM(folder, **SMALL) as llm:
        with pytest.raises(
            ValueError, match=r"prompts\[0\] \(as its tokenizer encodes it\) holds token id 1024"
        ):
            llm.generate("Once <foreign> upon", use_tqdm=False)
        assert llm.generate("Once", use_tqdm=False)[0].finished


def test_arrays_are_prompts_too(llm):
    ids = np.array([5, 6, 7])
    (expected,) = llm.generate([[5, 6, 7]], SamplingParams(temperature=0), use_tqdm=False)
    (output,) = llm.generate(ids, SamplingParams(temperature=0), use_tqdm=False)
    assert output.outputs == expected.outputs
