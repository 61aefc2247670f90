"""Models with attention code of their own run on the engine like any other, or are refused before they serve anything."""

import logging

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from models.crowded import MAX_TOKENS, PROMPT_LENGTHS, run_engine, smallest_pool
from models.tiny import (
    ADAPTED,
    SLOW_PATH,
    generate_greedy,
    random_prompts,
    save_tiny_model,
    tiny_model,
)
from pagedkv import LLM, SamplingParams
from pagedkv.attention import LayerCache
from pagedkv.errors import UnsupportedModelError
from pagedkv.models import prepare_model
from pagedkv.models.slow_path_cache import PagedCache

VARIANTS = [
    *((model_type, {}) for model_type in SLOW_PATH if model_type not in ADAPTED),
    ("falcon", {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
]


def greedy(**overrides):
    """Sampling parameters of the most likely tokens, to the full length."""
    settings = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    return SamplingParams(**settings | {"detokenize": False} | overrides)


def llm_of(folder, **settings):
    """An engine with small blocks."""
    return LLM(str(folder), skip_tokenizer_init=True, block_size=8, max_model_len=96, **settings)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_ids_equal_those_of_generate_under_preemption(model_type, overrides, tmp_path, caplog):
    model = save_tiny_model(model_type, tmp_path, **overrides)
    prompts = random_prompts(PROMPT_LENGTHS)
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    token_ids, stats, groups = run_engine(
        tmp_path, "auto", prompts, kv_cache_memory_bytes=smallest_pool(model)
    )
    assert token_ids == expected
    assert stats["num_preemptions"] > 0
    assert f"{model_type!r} runs on the slow path" in caplog.text
    assert [group.kind for group in groups] == ["full"]


def test_forks_of_a_prompt_continue_it_each_on_its_own(tmp_path):
    model = save_tiny_model("bloom", tmp_path)
    # Ends inside a block, which the forks share until each writes into it.
    [prompt] = random_prompts([13])
    [expected] = generate_greedy(model, [prompt], max_tokens=MAX_TOKENS)
    most_likely = greedy(temperature=1.0, top_k=1, n=3)
    sampled = greedy(temperature=1.0, seed=5, n=3, logprobs=0)
    with llm_of(tmp_path) as llm:
        alike, different = (
            llm.generate(prompt_token_ids=[prompt], sampling_params=params, use_tqdm=False)[0]
            for params in (most_likely, sampled)
        )
        llm.llm_engine.check_invariants()
    assert [list(fork.token_ids) for fork in alike.outputs] == [expected] * 3
    assert len({tuple(fork.token_ids) for fork in different.outputs}) == 3
    for fork in different.outputs:
        logprob = sum_of_logprobs(model, prompt, list(fork.token_ids))
        assert fork.cumulative_logprob == pytest.approx(logprob, rel=1e-3)


@torch.no_grad()
def sum_of_logprobs(model, prompt, continuation):
    """What transformers' model says of a continuation, in one pass."""
    ids = torch.tensor([prompt + continuation])
    logprobs = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(continuation)[:, None]).sum())


def test_a_prompt_that_shares_its_beginning_takes_it_from_the_prefix_cache(tmp_path):
    model = save_tiny_model("falcon", tmp_path, alibi=True)
    [shared, *ends] = random_prompts([40, 3, 5])
    prompts = [shared, *(shared + end for end in ends), shared]
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    with llm_of(tmp_path) as llm:
        outputs = [
            llm.generate(prompt_token_ids=[prompt], sampling_params=greedy(), use_tqdm=False)[0]
            for prompt in prompts
        ]
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert [output.num_cached_tokens for output in outputs[:3]] == [0, 40, 40]
    assert outputs[3].num_cached_tokens >= 32


def test_a_row_that_fails_leaves_the_others_of_its_step_right(tmp_path):
    model = save_tiny_model("gpt_neo", tmp_path)
    prompts = random_prompts([9, 4, 7])
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    with llm_of(tmp_path) as llm:
        loaded = llm.llm_engine.parts.loaded.model
        original = loaded.transformer.forward

        def failing(input_ids, **kwargs):
            if input_ids.shape[1] == 4:
                msg = "odd input"
                raise RuntimeError(msg)
            return original(input_ids, **kwargs)

        loaded.transformer.forward = failing
        outputs = llm.generate(prompt_token_ids=prompts, sampling_params=greedy(), use_tqdm=False)
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        expected[0],
        [],
        expected[2],
    ]


def test_one_warning_names_the_model_type_and_what_the_slow_path_means(tmp_path, caplog):
    save_tiny_model("mpt", tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING), llm_of(tmp_path):
        pass
    [warning] = [record.getMessage() for record in caplog.records]
    assert "'mpt' runs on the slow path" in warning
    assert "a batch is no faster" in warning


@pytest.mark.parametrize("adds_mask", [False, True])
def test_a_model_that_calls_the_interface_in_some_layers_only_runs_right(
    adds_mask, monkeypatch, tmp_path
):
    model = save_tiny_model("llama", tmp_path)
    prompts = random_prompts(PROMPT_LENGTHS)
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", own_attention_in_layer_2(adds_mask=adds_mask)
    )
    token_ids, _, groups = run_engine(
        tmp_path, "auto", prompts, kv_cache_memory_bytes=smallest_pool(tiny_model("llama"))
    )
    assert token_ids == expected
    assert len(groups) == 1


def own_attention_in_layer_2(*, adds_mask):
    """Llama's attention, by matrix products of its own in one layer, with transformers' mask or its own."""
    original = modeling_llama.LlamaAttention.forward

    def forward(
        self, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kw
    ):
        if self.layer_idx != 2:
            return original(
                self, hidden_states, position_embeddings, attention_mask, past_key_values, **kw
            )

        def heads(projection):
            return projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        query, key = modeling_llama.apply_rotary_pos_emb(
            heads(self.q_proj), heads(self.k_proj), *position_embeddings
        )
        value = heads(self.v_proj)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        num_queries, num_keys = query.shape[2], key.shape[2]
        causal = torch.ones(num_queries, num_keys).tril(num_keys - num_queries).bool()
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).mT * self.scaling
        masked = scores + attention_mask if adds_mask else scores.masked_fill(~causal, -torch.inf)
        weights = masked.softmax(-1)
        output = weights @ value.repeat_interleave(groups, 1)
        return self.o_proj(output.transpose(1, 2).flatten(2)), weights

    return forward


def test_a_model_that_takes_neither_positions_nor_the_tokens_to_keep_runs_right(
    monkeypatch, tmp_path
):
    model = save_tiny_model("llama", tmp_path)
    prompts = random_prompts([30, 4])
    expected = generate_greedy(model, prompts, max_tokens=MAX_TOKENS)
    original = type(model).forward

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):
        return original(
            self,
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    monkeypatch.setattr(type(model), "forward", forward)
    with llm_of(tmp_path, max_num_seqs=2, max_num_batched_tokens=16) as llm:
        outputs = llm.generate(prompt_token_ids=prompts, sampling_params=greedy(), use_tqdm=False)
        assert llm.llm_engine.parts.loaded.on_slow_path
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected


class MixesNeighbours(nn.Module):
    """A feed-forward layer that adds the token before, forgetting it between passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, *args):
        return self.inner(hidden_states + hidden_states.roll(1, dims=1), *args)


class RemembersPass(nn.Module):
    """A feed-forward layer that adds a sum over all tokens so far, which it keeps for one sequence."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.total = 0

    def forward(self, hidden_states, *args):
        # A pass of one token goes on; a longer one begins again.
        before = self.total if hidden_states.shape[1] == 1 else 0
        sums = hidden_states.cumsum(1) + before
        self.total = sums[:, -1:]
        return self.inner(hidden_states + sums, *args)


@pytest.mark.parametrize("state", [MixesNeighbours, RemembersPass])
def test_state_outside_of_the_cache_is_refused_by_what_it_does(state):
    model = tiny_model("bloom")
    model.transformer.h[2].mlp = state(model.transformer.h[2].mlp)
    with pytest.raises(UnsupportedModelError, match=r"'bloom' cannot run: .* runs in chunks"):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_model_that_looks_ahead_is_refused(monkeypatch):
    model = tiny_model("bloom")
    monkeypatch.setattr(
        "transformers.models.bloom.modeling_bloom.create_causal_mask", lambda **_: None
    )
    with pytest.raises(UnsupportedModelError, match="looks ahead"):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_layer_that_stores_nothing_is_refused_by_its_index():
    model = tiny_model("falcon", alibi=True)
    layer = model.transformer.h[1]
    original = layer.forward
    layer.forward = lambda *args, **kwargs: original(*args, **kwargs | {"layer_past": None})
    with pytest.raises(UnsupportedModelError, match="layer 1 stores no keys and values"):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_model_that_ignores_the_cache_is_refused():
    model = tiny_model("gpt_neo")
    original = model.transformer.forward
    model.transformer.forward = lambda ids, **kwargs: original(
        ids, **kwargs | {"past_key_values": None, "use_cache": False}
    )
    with pytest.raises(UnsupportedModelError, match="attention interface or its KV cache"):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_model_that_asks_for_a_cache_of_its_own_is_refused_with_its_error():
    model = tiny_model("gpt_neo")
    original = model.transformer.forward

    def forward(ids, *, past_key_values=None, **kwargs):
        if past_key_values is not None:
            past_key_values.conv_states.zero_()
        return original(ids, past_key_values=past_key_values, **kwargs)

    model.transformer.forward = forward
    with pytest.raises(UnsupportedModelError, match=r"AttributeError: .* 'conv_states'"):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_token_without_a_slot_reads_what_its_block_holds():
    blocks = torch.arange(3 * 2 * 4 * 1, dtype=torch.float32).view(3, 2, 4, 1)
    cache = PagedCache({0: LayerCache(key=blocks.clone(), value=blocks.clone())})
    cache.select(
        table=torch.tensor([2, 1], dtype=torch.int32), slots=torch.tensor([-1, 4]), num_cached=3
    )
    keys, values = cache.update(torch.full((1, 2, 2, 1), -7.0), torch.full((1, 2, 2, 1), -8.0), 0)
    assert keys[0, :, :, 0].tolist() == [[16, 17, 18, 19, -7], [20, 21, 22, 23, -7]]
    assert values[0, 1, :, 0].tolist() == [20, 21, 22, 23, -8]
    assert cache.get_seq_length() == 5


def test_a_second_write_of_one_layer_in_a_pass_is_an_error():
    memory = torch.zeros(2, 1, 4, 1)
    cache = PagedCache({0: LayerCache(key=memory, value=memory.clone())})
    cache.select(table=torch.tensor([1], dtype=torch.int32), slots=torch.tensor([4]), num_cached=0)
    new = torch.ones(1, 1, 1, 1)
    cache.update(new, new, 0)
    with pytest.raises(RuntimeError, match="keys of 1 tokens after 1, but the step has 1 of 1"):
        cache.update(new, new, 0)
