"""Every promised architecture continues prompts exactly as transformers' own `generate` does, in float32.

The naive engine runs several prompts at once: chunked prefill, shuffled blocks, window groups that give blocks back, and a
pool poisoned with NaN. Through the engine itself: test_sweep.py.
"""

import pytest
import torch

from models.naive_engine import NaiveEngine
from models.tiny import CONFIGS, generate_greedy, random_prompts, tiny_model
from pagedkv.attention import resolve_backend
from pagedkv.models import KvGroup, geometry, prepare_model

PROMPT_LENGTHS = [3, 17, 30, 9, 1]
MAX_TOKENS = 10


# "auto" is the cpu backend where this build has its kernels.
AVAILABLE_BACKENDS = sorted({"torch", resolve_backend("auto", torch.device("cpu"))})


@pytest.fixture(scope="module")
def run():
    """Runs an architecture on a backend; what transformers generates is computed once for all of them."""
    references = {}

    def run(model_type, backend, **overrides):
        model = tiny_model(model_type, **overrides)
        prompts = random_prompts(PROMPT_LENGTHS)
        key = (model_type, str(overrides))
        if key not in references:
            references[key] = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
        loaded = prepare_model(model, folder=None, max_model_len=256)
        engine = NaiveEngine(loaded, backend=backend)
        token_ids, _ = engine.generate(prompts, max_tokens=MAX_TOKENS)
        return token_ids, references[key], engine

    return run


@pytest.mark.parametrize("backend", AVAILABLE_BACKENDS)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_greedy_ids_equal_those_of_generate(model_type, backend, run):
    token_ids, expected, engine = run(model_type, backend)
    assert token_ids == expected
    assert engine.num_chunked_prompts > 0
    has_window = any(group.window is not None for group in engine.groups)
    assert (engine.num_freed_window_blocks > 0) == has_window
    # Were all continuations one token, an attention that returns nothing would pass.
    assert len({token_id for ids in token_ids for token_id in ids}) > 4


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v3"])
def test_results_do_not_depend_on_the_block_size(model_type, block_size):
    model = tiny_model(model_type)
    prompts = random_prompts(PROMPT_LENGTHS)
    expected = generate_greedy(model, prompts, max_tokens=4)
    loaded = prepare_model(model, folder=None, max_model_len=256)
    engine = NaiveEngine(loaded, backend="torch", block_size=block_size)
    assert engine.generate(prompts, max_tokens=4)[0] == expected


@pytest.mark.parametrize("model_type", ["phimoe", "qwen2_moe", "mistral", "llama4_text"])
def test_a_wrong_window_changes_the_result(model_type, monkeypatch):
    # A canary: shows that the sweep would notice a probe that reads windows wrongly.
    model = tiny_model(model_type)
    prompts = random_prompts([30])
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    monkeypatch.setattr(geometry, "_effective_mask", lambda *_: KvGroup("full", None))
    loaded = prepare_model(model, folder=None, max_model_len=256)
    token_ids, _ = NaiveEngine(loaded, backend="torch").generate(prompts, max_tokens=MAX_TOKENS)
    assert token_ids != expected


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        (
            "llama",
            {
                "max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
            },
        ),
        (
            "phi3",
            {
                "original_max_position_embeddings": 16,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [4.0] * 8,
                    "original_max_position_embeddings": 16,
                },
            },
        ),
        (
            "phimoe",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [4.0] * 8,
                    "short_mscale": 1.1,
                    "long_mscale": 1.3,
                    "original_max_position_embeddings": 16,
                },
            },
        ),
    ],
    ids=["dynamic", "longrope", "longrope with magnitudes"],
)
def test_a_long_neighbour_does_not_change_a_short_sequence(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    loaded = prepare_model(model, folder=None, max_model_len=128)
    short, long = random_prompts([12, 90])
    alone, logits_alone = NaiveEngine(loaded, backend="torch").generate([short], max_tokens=4)
    beside, logits_beside = NaiveEngine(
        loaded, backend="torch", max_num_batched_tokens=128
    ).generate([short, long], max_tokens=4)
    assert alone[0] == beside[0]
    torch.testing.assert_close(
        torch.stack(logits_alone[0]), torch.stack(logits_beside[0]), rtol=1e-3, atol=1e-3
    )
