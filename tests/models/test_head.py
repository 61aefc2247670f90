"""The head of a model run again over hidden states that are there already: the same numbers as in one call."""

import pytest
import torch
from torch import nn

from models.tiny import random_prompts, save_tiny_model, tiny_model
from pagedkv import LLM, SamplingParams
from pagedkv.models.head import LanguageModelHead

# Heads that cap, scale and divide; a body below the module that has its name (opt); a tied one; two slow paths.
HEADS = ["llama", "gemma2", "cohere2", "granite", "opt", "gpt2", "deepseek_v3", "bloom", "gpt_neo"]


@pytest.mark.parametrize("model_type", HEADS)
def test_a_prompt_in_chunks_has_the_log_probabilities_that_transformers_gives_it(
    model_type, tmp_path
):
    model = save_tiny_model(model_type, tmp_path)
    [prompt] = random_prompts([45])
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0].float().log_softmax(dim=1)
    with LLM(
        tmp_path,
        skip_tokenizer_init=True,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        max_model_len=64,
    ) as llm:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert output.error is None
    found = [output.prompt_logprobs[i][prompt[i]].logprob for i in range(1, 45)]
    wanted = [expected[i - 1, prompt[i]].item() for i in range(1, 45)]
    assert found == pytest.approx(wanted, abs=1e-3)


def test_layers_run_once_however_often_the_head_runs():
    model = tiny_model("llama")
    head, ids = LanguageModelHead(model), torch.tensor([[5, 6, 7, 8]])
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[0]
        calls.clear()
        with head.watch():
            model(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor([3]))
        parts = [head.logits(torch.tensor([i, i])) for i in range(4)]
        assert len(calls) == 1
        for i, part in enumerate(parts):
            torch.testing.assert_close(part[0], whole[i])
        # The model is as it was.
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits[0], whole)
    assert len(calls) == 2


def test_a_forward_of_the_bodys_own_is_put_back():
    model = tiny_model("llama")
    head, own = LanguageModelHead(model), model.model.forward
    model.model.forward = own
    with torch.inference_mode(), head.watch():
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    with torch.inference_mode():
        head.logits(torch.tensor([0]))
    assert vars(model.model)["forward"] is own


class Headless(nn.Module):
    """One layer straight to the logits."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 4)

    def forward(self, input_ids):
        return self.embedding(input_ids)


def test_a_model_without_a_body_is_named():
    model = Headless()
    head = LanguageModelHead(model)
    with pytest.raises(RuntimeError, match="prompt_logprobs: Headless has no body"), head.watch():
        model(input_ids=torch.tensor([[1]]))
    with pytest.raises(RuntimeError, match="no call of the model was watched"):
        head.logits(torch.tensor([0]))


def test_an_error_in_the_model_is_the_one_that_is_seen():
    model = Headless()
    with pytest.raises(IndexError), LanguageModelHead(model).watch():
        model(input_ids=torch.tensor([[9]]))


def test_hidden_states_are_let_go():
    model = tiny_model("llama")
    head = LanguageModelHead(model)
    with torch.inference_mode(), head.watch():
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    head.forget()
    with pytest.raises(RuntimeError, match="no call of the model was watched"):
        head.logits(torch.tensor([0]))
