"""One forward pass: padding, copies, which rows reach the LM head, and bits that do not depend on the batch."""

import pytest
import torch

from models.naive_engine import NaiveEngine
from models.tiny import VOCAB_SIZE, random_prompts, tiny_model
from pagedkv.attention import StepInputs, create_backend
from pagedkv.attention.context import StepContext, current_step, step_context
from pagedkv.model_runner import ModelRunner
from pagedkv.models import padded_rows, prepare_model
from pagedkv.models.torch_threads import max_rows_alone

CPU = torch.device("cpu")


class RecordingBackend:
    """Notes what it is asked for, in order; attends to nothing."""

    name = "recording"

    def __init__(self):
        self.calls = []

    def plan(self, step):
        self.calls.append("plan")

    def copy_blocks(self, copies):
        self.calls.append(("copy_blocks", copies.tolist()))

    def write_kv(self, layer, key, value):
        self.calls.append(("write_kv", layer.layer_idx, tuple(key.shape)))

    def attend(self, layer, query, sinks):
        self.calls.append(("attend", layer.layer_idx, tuple(query.shape)))
        return torch.zeros(query.shape[0], layer.num_query_heads, layer.v_dim)


def step_of(num_tokens, logits_indices, copies=()):
    """A step of one row over its first tokens."""

    def int32(values):
        return torch.tensor(values, dtype=torch.int32)

    return StepInputs(
        row_ids=int32([0]),
        query_start_loc=int32([0, num_tokens]),
        seq_lens=int32([num_tokens]),
        input_ids=int32(list(range(2, 2 + num_tokens))),
        positions=int32(list(range(num_tokens))),
        slot_mapping=torch.arange(8, 8 + num_tokens)[None],
        block_tables=torch.arange(1, 5, dtype=torch.int32)[None, None],
        logits_indices=int32(logits_indices),
        block_copies=int32([list(copy) for copy in copies]).reshape(-1, 3),
        num_tokens_padded=padded_rows(num_tokens),
    )


def runner_of(loaded, backend):
    return ModelRunner(
        loaded.model,
        layers={layer.layer_idx: layer for layer in loaded.geometry.layers},
        backend=backend,
        device=CPU,
        max_num_batched_tokens=16,
        vocab_size=loaded.vocab_size,
        row_multiple=4,
    )


@pytest.fixture(scope="module")
def loaded():
    return prepare_model(tiny_model("llama"), folder=None, max_model_len=64)


def test_blocks_are_copied_after_the_plan_and_before_anything_is_written(loaded):
    backend = RecordingBackend()
    runner_of(loaded, backend).forward(step_of(3, [2], copies=[(0, 1, 2)]))
    assert backend.calls[:2] == ["plan", ("copy_blocks", [[0, 1, 2]])]
    assert [call[0] for call in backend.calls[2:]] == ["write_kv", "attend"] * 4


def test_the_batch_is_padded_to_a_multiple_of_four_rows(loaded):
    backend = RecordingBackend()
    runner_of(loaded, backend).forward(step_of(5, [4]))
    assert ("write_kv", 0, (8, 2, 16)) in backend.calls
    assert ("attend", 0, (8, 4, 16)) in backend.calls


def test_only_sampled_rows_reach_the_head_and_may_repeat(loaded):
    seen = []
    hook = loaded.model.lm_head.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    runner = runner_of(loaded, RecordingBackend())
    logits = runner.forward(step_of(9, [3, 8, 3]))
    hook.remove()
    assert seen == [4]
    assert logits.shape == (3, VOCAB_SIZE)
    assert logits.dtype == torch.float32
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])


def test_a_step_that_samples_nothing_gives_no_logits(loaded):
    logits = runner_of(loaded, RecordingBackend()).forward(step_of(4, []))
    assert logits.shape == (0, VOCAB_SIZE)


class ThreadNotingBackend(RecordingBackend):
    def attend(self, layer, query, sinks):
        self.calls.append(torch.get_num_threads())
        return super().attend(layer, query, sinks)


@pytest.fixture
def _two_torch_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_torch_threads")
def test_torch_has_one_thread_in_small_steps_and_its_own_in_large_ones_and_afterwards(
    loaded, monkeypatch
):
    monkeypatch.setattr("pagedkv.models.torch_threads._MAX_NUMEL", 8 * 96)
    assert max_rows_alone(loaded.model) == 8
    seen = []
    for num_tokens in (5, 9):
        backend = ThreadNotingBackend()
        runner_of(loaded, backend).forward(step_of(num_tokens, [0]))
        seen.append({call for call in backend.calls if isinstance(call, int)})
        assert torch.get_num_threads() == 2
    assert seen == [{1}, {2}]


@pytest.mark.parametrize("model_type", ["gpt2", "deepseek_v3"])
def test_torch_keeps_its_threads_where_products_are_left_to_it(model_type):
    loaded = prepare_model(tiny_model(model_type), folder=None, max_model_len=64)
    assert max_rows_alone(loaded.model) == 0


def test_a_failed_step_leaves_the_runner_usable(loaded):
    class FailingBackend(RecordingBackend):
        def attend(self, layer, query, sinks):
            if len(self.calls) < 4:
                raise RuntimeError("broken")
            return super().attend(layer, query, sinks)

    runner = runner_of(loaded, FailingBackend())
    with pytest.raises(RuntimeError, match="broken"):
        runner.forward(step_of(4, [3]))
    with pytest.raises(RuntimeError, match="outside of an engine step"):
        current_step()
    runner.forward(step_of(4, [3]))


def test_steps_do_not_nest():
    context = StepContext(backend=RecordingBackend(), layers={})
    outer, inner = step_context(context), step_context(context)
    with outer, pytest.raises(RuntimeError, match="do not nest"), inner:
        pass
    with step_context(context):
        assert current_step() is context


def test_the_model_called_by_itself_says_how_to_use_it_by_itself(loaded):
    with pytest.raises(RuntimeError, match="set_attn_implementation"):
        loaded.model(input_ids=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral", "gpt_oss", "deepseek_v3"])
def test_logits_have_the_same_bits_alone_and_in_a_batch_whatever_the_chunks(model_type):
    prompts = random_prompts([3, 17, 30, 9])
    model = prepare_model(tiny_model(model_type), folder=None, max_model_len=64)
    assert model.batch_invariant
    together = NaiveEngine(model, backend="cpu").generate(prompts, max_tokens=6)[1]
    for prompt, expected in zip(prompts, together, strict=True):
        alone = NaiveEngine(model, backend="cpu", max_num_batched_tokens=13)
        logits = alone.generate([prompt], max_tokens=6)[1][0]
        assert torch.equal(torch.stack(logits), torch.stack(expected))


@pytest.mark.parametrize(
    ("model_type", "cpu_kernels", "multiple"),
    [
        ("llama", True, 1),
        ("gemma2", True, 1),
        ("mixtral", True, 1),
        # Products that are torch's: all, those of another layer class, of latents.
        ("llama", False, 4),
        ("gpt2", True, 4),
        ("deepseek_v3", True, 4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_are_padded_only_where_a_product_is_torchs(
    model_type, cpu_kernels, multiple, dtype
):
    model = tiny_model(model_type).to(dtype)
    model = prepare_model(model, folder=None, max_model_len=64, cpu_kernels=cpu_kernels)
    assert model.row_multiple == multiple


def test_rows_of_an_unpadded_batch_have_the_same_bits_however_many_they_are():
    model = prepare_model(tiny_model("llama"), folder=None, max_model_len=64)
    prompts = random_prompts([1, 2, 5, 6, 7, 11, 3])
    together = NaiveEngine(model, backend="cpu").generate(prompts, max_tokens=5)[1]
    for count in range(1, len(prompts)):
        few = NaiveEngine(model, backend="cpu").generate(prompts[:count], max_tokens=5)[1]
        for logits, expected in zip(few, together, strict=False):
            assert torch.equal(torch.stack(logits), torch.stack(expected))


def test_logits_do_not_depend_on_the_number_of_threads():
    # Sizes that no number of threads divides. (Projections under 64 columns are left out: with three threads and more
    # torch's own product of such a width depends on their number.)
    sizes = {"hidden_size": 520, "intermediate_size": 1100, "head_dim": 64, "vocab_size": 2003}
    model = tiny_model("llama", **sizes)
    loaded = prepare_model(model, folder=None, max_model_len=64)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        engine = NaiveEngine(loaded, backend="cpu", max_num_batched_tokens=64)
        logits = engine.generate(random_prompts([40, 3]), max_tokens=2)[1]
        results.append(torch.stack([*logits[0], *logits[1]]))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("flash", CPU, "attention_backend must be one of auto, cpu, torch, got 'flash'"),
        ("cuda", CPU, "not part of this version yet"),
        ("cpu", torch.device("cuda"), "needs device='cpu'"),
    ],
)
def test_a_backend_that_cannot_be_had_is_refused_by_name(name, device, message):
    with pytest.raises(ValueError, match=message):
        create_backend(name, layers={}, caches={}, device=device)
