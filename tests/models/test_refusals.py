"""What cannot run is refused when it is loaded, with its model type and the reason; nothing runs silently wrong."""

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.llama import modeling_llama

from models.tiny import tiny_config, tiny_model
from pagedkv.errors import UnsupportedModelError
from pagedkv.models import prepare_model
from pagedkv.models.checks import check_config
from pagedkv.models.loading import _probe_shapes

SMALL = {"vocab_size": 199, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba", "recurrent state"),
        ("mamba2", "recurrent state"),
        ("rwkv", "keep a state"),
        ("qwen3_next", "recurrent state"),
        ("jamba", "recurrent state"),
        ("deepseek_v32", "sparse indexer"),
        ("t5", "encoder-decoder"),
        ("bart", "encoder-decoder"),
        ("gemma3", "multimodal"),
        ("clip_text_model", "no causal language model"),
    ],
)
def test_a_configuration_that_names_its_reason_is_refused_before_anything_is_built(
    model_type, reason
):
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        check_config(CONFIG_MAPPING[model_type](), has_code=False)
    assert "cannot run" in str(caught.value)


def test_the_layer_of_an_unknown_kind_is_named():
    config = CONFIG_MAPPING["lfm2"](num_hidden_layers=2, layer_types=["full_attention", "conv"])
    with pytest.raises(UnsupportedModelError, match=r"model type 'lfm2' .* layer 1 \('conv'\)"):
        check_config(config, has_code=False)


def test_quantized_weights_are_refused_by_method():
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    with pytest.raises(UnsupportedModelError, match="quantized \\(awq\\)"):
        check_config(config, has_code=False)


def test_bidirectional_attention_is_refused():
    config = tiny_config("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match="bidirectional"):
        check_config(config, has_code=False)


def test_a_model_is_refused_without_reading_weights_where_it_runs_on_shapes_alone(monkeypatch):
    attention = modeling_llama.LlamaAttention
    original = attention.__init__

    def bidirectional(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.is_causal = False

    monkeypatch.setattr(attention, "__init__", bidirectional)
    with pytest.raises(UnsupportedModelError, match="bidirectional"):
        _probe_shapes(tiny_config("llama"), trust_remote_code=False)


def test_a_model_that_runs_on_either_path_passes_the_probe_without_weights():
    for config in (tiny_config("llama"), tiny_config("mixtral"), CONFIG_MAPPING["bloom"](**SMALL)):
        _probe_shapes(config, trust_remote_code=False)


class Shift(nn.Module):
    """A feed-forward layer that mixes in the previous token of the batch, as recurrent layers do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states):
        return self.inner(hidden_states + torch.roll(hidden_states, 1, dims=1))


@pytest.mark.parametrize(("layer_idx", "named"), [(1, "keys of layer 2"), (3, "logits depend")])
def test_state_outside_of_attention_is_found_by_what_it_does(layer_idx, named):
    model = tiny_model("llama")
    model.model.layers[layer_idx].mlp = Shift(model.model.layers[layer_idx].mlp)
    with pytest.raises(UnsupportedModelError, match=named):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_model_that_counts_positions_by_itself_is_refused():
    model = tiny_model("llama")
    rotary = model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: original(x, torch.arange(position_ids.shape[1])[None])
    with pytest.raises(UnsupportedModelError, match="ignores position_ids"):
        prepare_model(model, folder=None, max_model_len=64)


def test_rotary_frequencies_that_follow_the_longest_row_are_refused_when_nothing_froze_them(
    monkeypatch,
):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=32)
    monkeypatch.setattr("pagedkv.models.loading.freeze_rope", lambda *_, **__: 0)
    with pytest.raises(UnsupportedModelError, match="keys of layer 0 depend on the other tokens"):
        prepare_model(model, folder=None, max_model_len=128)


def test_a_mask_that_reaches_farther_than_the_cache_of_transformers_limits_the_context():
    with pytest.raises(UnsupportedModelError, match="pass max_model_len=7 or less"):
        prepare_model(tiny_model("llama", sliding_window=7), folder=None, max_model_len=8)
    loaded = prepare_model(tiny_model("llama", sliding_window=7), folder=None, max_model_len=7)
    assert not loaded.on_slow_path


def test_an_unknown_attention_argument_is_refused():
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    original = attention.forward
    attention.forward = lambda *args, **kwargs: original(
        *args, **kwargs, position_bias=torch.ones(1)
    )
    with pytest.raises(UnsupportedModelError, match="layer 1 its attention takes 'position_bias'"):
        prepare_model(model, folder=None, max_model_len=64)


def test_a_bidirectional_module_is_refused():
    model = tiny_model("llama")
    model.model.layers[2].self_attn.is_causal = False
    with pytest.raises(UnsupportedModelError, match="layer 2 its attention is bidirectional"):
        prepare_model(model, folder=None, max_model_len=64)


def test_an_encoder_configuration_that_says_so_is_refused():
    config = PretrainedConfig(is_encoder_decoder=True)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        check_config(config, has_code=True)
