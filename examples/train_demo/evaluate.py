"""How good is a demo model? Exact answers, stories about what was asked for, refusals, samples.

    python evaluate.py MODEL [--questions 200]

Runs transformers' generate in float32, one question at a time.
"""

import argparse
import os
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from corpus import exact_turns, name_thread, story_thread, unknown
from stories import with_article
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from words import ANIMALS, BOYS, GIRLS

UNSEEN_SEED = 777_001
MAX_NEW_TOKENS = 160

Messages = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    report_exact_answers(model, tokenizer, arguments.questions)
    report_stories(model, tokenizer)
    report_memory(model, tokenizer)
    report_samples(model, tokenizer)


def report_exact_answers(model: PreTrainedModel, tokenizer: Tokenizer, num_questions: int) -> None:
    """Prints the share of right answers: known facts alone, and deep in a long chat; refusals."""
    turns = exact_turns(UNSEEN_SEED, num_questions)
    rng = Random(UNSEEN_SEED)
    refusals = [unknown(rng) for _ in range(num_questions // 2)]
    for name, asked in (("facts", turns), ("refusals", refusals)):
        wrong = []
        for turn in asked:
            answer = reply(model, tokenizer, [user(turn.question)])
            if answer != turn.answer:
                wrong.append(f"  {turn.question!r} -> {answer!r}")
        print(f"{name}: {len(asked) - len(wrong)} of {len(asked)} exact", *wrong[:8], sep="\n")
    for num_turns_before in (8, 32, 64):
        num_right = 0
        asked = turns[:40]
        for index, turn in enumerate(asked):
            before = [turns[(index + 1 + i) % len(turns)] for i in range(num_turns_before)]
            chat = [
                message
                for earlier in before
                for message in (user(earlier.question), assistant(earlier.answer))
            ]
            num_right += reply(model, tokenizer, [*chat, user(turn.question)]) == turn.answer
        print(f"facts after {num_turns_before} other questions: {num_right} of {len(asked)} exact")


def report_stories(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Prints how many stories keep the child and the animal that were asked for and come to an end."""
    num_kept, num_ended = 0, 0
    rng = Random(UNSEEN_SEED)
    num_stories = 40
    for _ in range(num_stories):
        hero, animal = rng.choice(GIRLS + BOYS), rng.choice(ANIMALS).name
        request = f"Tell me a story about {hero} and {with_article(animal)}."
        text = reply(model, tokenizer, [user(request)])
        num_kept += hero in text and animal in text
        num_ended += text.endswith((".", "!", '"'))
    print(f"stories: {num_kept} of {num_stories} keep child and animal, {num_ended} end")


def report_memory(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Prints how often answers that refer back to earlier turns are right."""
    rng = Random(UNSEEN_SEED)
    for make, name in ((name_thread, "your name"), (story_thread, "who was in the story")):
        num_right, num_asked = 0, 0
        while num_asked < 20:
            thread = make(rng)
            if not thread[-1].is_exact or "welcome" in thread[-1].answer:
                continue
            chat = [
                message
                for turn in thread[:-1]
                for message in (user(turn.question), assistant(turn.answer))
            ]
            answer = reply(model, tokenizer, [*chat, user(thread[-1].question)])
            num_right += answer == thread[-1].answer
            num_asked += 1
        print(f"referring back, {name}: {num_right} of {num_asked} exact")


def report_samples(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Prints greedy answers and sampled continuations."""
    for question in (
        "What is the capital of Japan?", "Tell me a story about a fox.", "Explain quantum physics.",
        "Who are you?", "Count from three to nine.",
    ):  # fmt: skip
        print(f"\n> {question}\n{reply(model, tokenizer, [user(question)])}")
    torch.manual_seed(0)
    for prompt in ("Once upon a time", "Tell me a story", "Hello, my name is"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(
            ids, do_sample=True, temperature=0.9, top_k=0, max_new_tokens=60, num_return_sequences=5
        )
        print()
        for row in output:
            print(f"{prompt!r} ->{tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)}")


def user(text: str) -> dict[str, str]:
    """Returns a message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """Returns a message of the model."""
    return {"role": "assistant", "content": text}


def reply(model: PreTrainedModel, tokenizer: Tokenizer, messages: Messages) -> str:
    """Returns the greedy answer to a chat."""
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**encoded, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    text: str = tokenizer.decode(
        output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text


if __name__ == "__main__":
    main()
