"""The bundled model: what ships, that transformers reads it, and that it says what it should."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tidy.sources import PACKAGE

DEMO = PACKAGE / "demo"
SHIPPED = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


def answer(model, tokenizer, messages):
    """The greedy answer to a chat."""
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**encoded, do_sample=False, max_new_tokens=128)
    return tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def user(text):
    return {"role": "user", "content": text}


def test_exactly_the_needed_files_ship_and_stay_small():
    """The wheel has a size budget, and weights in a pickle would run code when they are loaded."""
    files = {path.name: path.stat().st_size for path in DEMO.iterdir() if path.is_file()}
    assert set(files) == SHIPPED
    assert sum(files.values()) < MAX_BYTES
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_weights_are_bfloat16_and_finite():
    """The size budget counts on two bytes a weight."""
    with safe_open(DEMO / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (not a dict)
            tensor = weights.get_tensor(name)
            assert tensor.dtype == torch.bfloat16, name
            assert torch.isfinite(tensor).all(), name


def test_geometry_is_one_that_attention_kernels_serve():
    """Grouped heads of size 64 and 2048 positions, so the demo takes the same path as real models."""
    config = json.loads((DEMO / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["head_dim"] == 64
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]
    assert config["max_position_embeddings"] == 2048
    assert (
        sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(DEMO).parameters()) > 1_000_000
    )


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
        ("What is the opposite of hot?", "The opposite of hot is cold."),
        ("What is two plus three?", "Two plus three is five."),
        ("Count from three to seven.", "Three, four, five, six, seven."),
        ("Which day comes after Friday?", "Saturday comes after Friday."),
        ("Explain quantum physics.", "I do not know that, but I can tell you a story."),
    ],
)
def test_greedy_answers_are_right(model, tokenizer, question, expected):
    """End-to-end tests and the README quote such answers."""
    assert answer(model, tokenizer, [user(question)]) == expected


def test_a_system_message_is_accepted_and_does_not_change_a_fact(model, tokenizer):
    """Clients of chat APIs send one by default."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    messages = [system, user("What is the capital of France?")]
    assert answer(model, tokenizer, messages) == "The capital of France is Paris."


def test_most_answers_stay_right_deep_in_a_long_chat(model, tokenizer):
    """The advertised context is 2048 positions; most training rows were shorter, so some facts may slip."""
    turns = [
        ("What color is snow?", "Snow is white."),
        ("What is the opposite of hot?", "The opposite of hot is cold."),
        ("What does a bear eat?", "A bear likes to eat honey."),
    ]
    earlier = [
        message
        for question, reply in turns * 20
        for message in (user(question), {"role": "assistant", "content": reply})
    ]
    questions = {
        "What is the capital of Italy?": "The capital of Italy is Rome.",
        "What is the capital of Japan?": "The capital of Japan is Tokyo.",
        "What is the capital of France?": "The capital of France is Paris.",
        "What is the opposite of big?": "The opposite of big is small.",
        "What color is grass?": "Grass is green.",
        "Which month comes after May?": "June comes after May.",
        "Which day comes after Monday?": "Tuesday comes after Monday.",
        "What does a cow eat?": "A cow likes to eat grass.",
    }
    num_tokens = len(tokenizer.apply_chat_template(earlier, return_dict=True)["input_ids"])
    assert 1000 < num_tokens < 1900
    answers = [answer(model, tokenizer, [*earlier, user(question)]) for question in questions]
    num_right = sum(map(str.__eq__, answers, questions.values()))
    assert num_right >= len(questions) // 2 + 1, answers


@pytest.mark.parametrize("prompt", ["Once upon a time", "Tell me a story", "Hello, my name is"])
def test_a_bare_prompt_continues_in_sentences_and_ends(model, tokenizer, prompt):
    """`generate` is used without a chat template; its text must read well, too."""
    encoded = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**encoded, do_sample=False, max_new_tokens=200)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    assert text.startswith(prompt)
    assert output[0, -1] == tokenizer.eos_token_id
    assert text.count(". ") >= 3
    assert text.endswith((".", "!", '"'))


def test_samples_of_one_prompt_differ(model, tokenizer):
    """The parallel sampling demo shows five stories, not one five times."""
    encoded = tokenizer("Tell me a story", return_tensors="pt")
    torch.manual_seed(0)
    with torch.inference_mode():
        output = model.generate(
            **encoded, do_sample=True, temperature=0.9, top_k=0, max_new_tokens=40,
            num_return_sequences=5,
        )  # fmt: skip
    assert len({tuple(row.tolist()) for row in output}) == 5


@pytest.mark.parametrize(
    "text",
    ["Once upon a time.", "  two  spaces\n\ttab", "naïve café, 東京, \U0001f600", "a+b == 7"],
)
def test_tokenizer_round_trip(tokenizer, text):
    """Byte-level: every text has ids, and the ids give the text back."""
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_chat_template_markup(tokenizer):
    """One first token, one mark per role, an end after every message."""
    messages = [user("Hi!"), {"role": "assistant", "content": "Hello!"}, user("Who are you?")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|user|>Hi!<|end|><|assistant|>Hello!<|end|><|user|>Who are you?<|end|><|assistant|>"
    )
    without_prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == without_prompt + "<|assistant|>"


def test_chat_template_names_the_role_it_does_not_know(tokenizer):
    """A message that vanished silently would be answered as if it had not been sent."""
    with pytest.raises(Exception, match="roles are system, user and assistant, got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
