"""The training text of the demo model: stories, simple questions and chats, deterministic in the seed.

`python corpus.py [SEED]` prints a few documents.
"""

import sys
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from stories import capitalized, story, with_article
from words import (
    ANIMALS,
    BOYS,
    CAPITALS,
    COLORS,
    DAYS,
    GIRLS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    SYSTEM_MESSAGES,
    UNKNOWN_QUESTIONS,
    UNKNOWN_TOPICS,
    USES,
)  # fmt: skip

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

REFUSAL = "I do not know that, but I can tell you a story."


class Turn(NamedTuple):
    """A question and its answer; `is_exact` if no other answer is right."""

    question: str
    answer: str
    is_exact: bool


def documents(seed: int, num_documents: int) -> list[str]:
    """Returns marked-up documents; the same seed gives the same documents."""
    rng = Random(seed)
    return [document(rng) for _ in range(num_documents)]


def exact_turns(seed: int, num_turns: int) -> list[Turn]:
    """Returns single questions that have one right answer, as a user would type them."""
    rng = Random(seed)
    turns: list[Turn] = []
    while len(turns) < num_turns:
        turn = rng.choice(FACTS)(rng)
        if turn.is_exact:
            turns.append(turn)
    return turns


def document(rng: Random) -> str:
    """Returns one document: a bare story, bare text, or a chat."""
    kind = rng.random()
    if kind < 0.2:
        return f"{BOS}{story(rng)}{END}"
    if kind < 0.4:
        return f"{BOS}{bare_text(rng)}{END}"
    return chat(rng)


def chat(rng: Random) -> str:
    """Returns a chat of one to six questions, now and then with a system message before it."""
    system = f"{SYSTEM}{rng.choice(SYSTEM_MESSAGES)}{END}" if rng.random() < 0.15 else ""
    turns: list[Turn] = []
    num_turns = rng.choice((1, 1, 1, 1, 2, 2, 3, 4, 6))
    while len(turns) < num_turns:
        turns += rng.choice(THREADS)(rng) if rng.random() < 0.3 else [single_turn(rng)]
    marked = [
        f"{USER}{as_typed(rng, turn.question)}{END}{ASSISTANT}{turn.answer}{END}" for turn in turns
    ]
    return f"{BOS}{system}{''.join(marked)}"


def single_turn(rng: Random) -> Turn:
    """Returns one question with its answer: a fact, a story, or something unknown."""
    kind = rng.random()
    if kind < 0.3:
        return story_request(rng)
    if kind < 0.42:
        return unknown(rng)
    return rng.choice(FACTS)(rng)


def as_typed(rng: Random, question: str) -> str:
    """Returns the question as hasty people type it: at times without capitals or the last mark."""
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip(".?!")
    return question


def story_request(rng: Random) -> Turn:
    """Returns a request for a story and the story, which keeps to what was asked for."""
    start = rng.choice(("Tell me a story", "Write a short story", "Can you tell me a story"))
    mark = "?" if start.startswith("Can") else "."
    animal = rng.choice(ANIMALS)
    hero = rng.choice(GIRLS + BOYS)
    kind = rng.randrange(4)
    if kind == 0:
        return Turn(f"{start}{mark}", story(rng), is_exact=False)
    if kind == 1:
        question = f"{start} about {with_article(animal.name)}{mark}"
        return Turn(question, story(rng, animal=animal), is_exact=False)
    if kind == 2:
        return Turn(f"{start} about {hero}{mark}", story(rng, hero=hero), is_exact=False)
    question = f"{start} about {hero} and {with_article(animal.name)}{mark}"
    return Turn(question, story(rng, hero=hero, animal=animal), is_exact=False)


def bare_text(rng: Random) -> str:
    """Returns text without chat markup, of the kinds that people give as a bare prompt."""
    kind = rng.randrange(5)
    if kind < 2:
        turn = story_request(rng)
        return f"{turn.question}{rng.choice((' ', ' ', chr(10)))}{turn.answer}"
    if kind == 2:
        hero = rng.choice(GIRLS + BOYS)
        animal = rng.choice(ANIMALS)
        hello = rng.choice(("Hello, my name is", "Hello! My name is", "My name is"))
        like = with_article(f"{animal.adjective} {animal.name}")
        about = story(rng, hero=hero, animal=animal)
        return f"{hello} {hero}. I have {like}. It likes to eat {animal.food}. {about}"
    turns = [rng.choice(FACTS[:-2])(rng) for _ in range(rng.randrange(2, 6))]
    if kind == 3:
        return " ".join(turn.answer for turn in turns)
    return "\n".join(f"{turn.question} {turn.answer}" for turn in turns)


def unknown(rng: Random) -> Turn:
    """Returns a question outside of what the model knows; half of them about words that do not exist."""
    topic = rng.choice(UNKNOWN_TOPICS) if rng.random() < 0.5 else made_up_word(rng)
    return Turn(rng.choice(UNKNOWN_QUESTIONS).format(x=topic), REFUSAL, is_exact=True)


def made_up_word(rng: Random) -> str:
    """Returns a word of random syllables, alone or after an article."""
    syllables = [
        rng.choice("bcdfghjklmnprstvwz")
        + rng.choice("aeiou")
        + rng.choice(("", "n", "r", "l", "st"))
        for _ in range(rng.randrange(2, 5))
    ]
    word = "".join(syllables)
    return rng.choice((word, f"the {word}", f"a {word}", word.capitalize()))


def color(rng: Random) -> Turn:
    thing = rng.choice(list(COLORS))
    question = rng.choice((f"What color is {thing}?", f"Tell me the color of {thing}."))
    return Turn(question, f"{capitalized(thing)} is {COLORS[thing]}.", is_exact=True)


def capital(rng: Random) -> Turn:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.15:
        question = f"In which country is {city}?"
        return Turn(question, f"{city} is the capital of {country}.", is_exact=True)
    question = rng.choice(("What is the capital of {x}?", "Which city is the capital of {x}?"))
    return Turn(question.format(x=country), f"The capital of {country} is {city}.", is_exact=True)


def opposite(rng: Random) -> Turn:
    first, second = rng.sample(rng.choice(OPPOSITES), 2)
    question = f"What is the opposite of {first}?"
    return Turn(question, f"The opposite of {first} is {second}.", is_exact=True)


def addition(rng: Random) -> Turn:
    left, right = rng.randrange(11), rng.randrange(11)
    if rng.random() < 0.3:
        question = rng.choice((f"What is {left} + {right}?", f"{left} + {right} ="))
        return Turn(question, f"{left} + {right} = {left + right}.", is_exact=True)
    question = rng.choice(("What is {l} plus {r}?", "How much is {l} plus {r}?"))
    words = {"l": NUMBERS[left], "r": NUMBERS[right]}
    answer = capitalized("{l} plus {r} is ".format(**words)) + f"{NUMBERS[left + right]}."
    return Turn(question.format(**words), answer, is_exact=True)


def counting(rng: Random) -> Turn:
    first = rng.randrange(12)
    last = first + rng.randrange(2, 9)
    question = f"Count from {NUMBERS[first]} to {NUMBERS[last]}."
    return Turn(question, capitalized(", ".join(NUMBERS[first : last + 1])) + ".", is_exact=True)


def calendar(rng: Random) -> Turn:
    noun, names = rng.choice((("month", MONTHS), ("day", DAYS)))
    here = rng.randrange(len(names))
    where, there = rng.choice((("after", (here + 1) % len(names)), ("before", here - 1)))
    question = f"Which {noun} comes {where} {names[here]}?"
    return Turn(question, f"{names[there]} comes {where} {names[here]}.", is_exact=True)


def animal_food(rng: Random) -> Turn:
    animal = rng.choice(ANIMALS)
    name = with_article(animal.name)
    answer = f"{capitalized(name)} likes to eat {animal.food}."
    return Turn(f"What does {name} eat?", answer, is_exact=True)


def animal_fact(rng: Random) -> Turn:
    animal = rng.choice(ANIMALS)
    name = with_article(animal.name)
    answer = (
        f"{capitalized(name)} is {animal.adjective}. It can {animal.verb}, "
        f"and it likes to eat {animal.food}."
    )
    return Turn(f"Tell me about {name}.", answer, is_exact=True)


def use(rng: Random) -> Turn:
    tool = rng.choice(list(USES))
    return Turn(f"What is {tool} for?", f"You use {tool} to {USES[tool]}.", is_exact=True)


def identity(rng: Random) -> Turn:
    question = rng.choice(("Who are you?", "What are you?", "What can you do?", "Can you help me?"))
    answer = (
        "I am a very small language model. I can tell short stories and answer simple questions."
    )
    return Turn(question, answer, is_exact=True)


def courtesy(rng: Random) -> Turn:
    question, answer = rng.choice(
        (
            ("Hello.", "Hello! How can I help you?"),
            ("Hello!", "Hello! How can I help you?"),
            ("Hi!", "Hello! How can I help you?"),
            ("Hello there.", "Hello! How can I help you?"),
            ("Good morning.", "Good morning! How can I help you?"),
            ("How are you?", "I am fine, thank you. How can I help you?"),
            ("Thank you.", "You are welcome."),
            ("Thanks!", "You are welcome."),
            ("Goodbye.", "Goodbye! Come back soon."),
            ("Bye!", "Goodbye! Come back soon."),
        )
    )
    return Turn(question, answer, is_exact=True)


def capitals_thread(rng: Random) -> list[Turn]:
    first, second = rng.sample(list(CAPITALS), 2)
    return [
        Turn(
            f"What is the capital of {first}?",
            f"The capital of {first} is {CAPITALS[first]}.",
            True,
        ),
        Turn(f"And of {second}?", f"The capital of {second} is {CAPITALS[second]}.", True),
    ]


def colors_thread(rng: Random) -> list[Turn]:
    first, second = rng.sample(list(COLORS), 2)
    return [
        Turn(f"What color is {first}?", f"{capitalized(first)} is {COLORS[first]}.", True),
        Turn(f"And {second}?", f"{capitalized(second)} is {COLORS[second]}.", True),
    ]


def name_thread(rng: Random) -> list[Turn]:
    name = rng.choice(GIRLS + BOYS)
    between = [rng.choice(FACTS)(rng) for _ in range(rng.randrange(3))]
    introduction = rng.choice(
        (f"My name is {name}.", f"I am {name}.", f"Hello, my name is {name}.")
    )
    return [
        Turn(introduction, f"Nice to meet you, {name}! How can I help you?", True),
        *between,
        Turn("What is my name?", f"Your name is {name}.", True),
    ]


def animal_thread(rng: Random) -> list[Turn]:
    animal = rng.choice(ANIMALS)
    name = with_article(animal.name)
    return [
        animal_turn(
            f"I saw {name} today.", f"{capitalized(name)} is {animal.adjective}. Did you like it?"
        ),
        animal_turn("What does it eat?", f"{capitalized(name)} likes to eat {animal.food}."),
        animal_turn("Tell me a story about it.", story(rng, animal=animal)),
    ][: rng.randrange(2, 4)]


def animal_turn(question: str, answer: str) -> Turn:
    return Turn(question, answer, is_exact=False)


def story_thread(rng: Random) -> list[Turn]:
    hero = rng.choice(GIRLS + BOYS)
    animal = rng.choice(ANIMALS)
    name = with_article(animal.name)
    return [
        Turn(
            f"Tell me a story about {hero} and {name}.", story(rng, hero=hero, animal=animal), False
        ),
        rng.choice(
            (
                Turn("Who was in the story?", f"The story was about {hero} and {name}.", True),
                Turn("Another one, please.", story(rng), False),
                Turn("Thank you.", "You are welcome.", True),
                Turn("Tell me another story.", story(rng), False),
            )
        ),
    ]


def offer_thread(rng: Random) -> list[Turn]:
    answer = rng.choice(("Yes, please.", "Yes.", "Okay.", "Please tell me a story."))
    return [unknown(rng), Turn(answer, story(rng), is_exact=False)]


FACTS: tuple[Callable[[Random], Turn], ...] = (
    color, capital, capital, opposite, addition, addition, counting, calendar, animal_food,
    animal_fact, use, identity, courtesy,
)  # fmt: skip
THREADS: tuple[Callable[[Random], list[Turn]], ...] = (
    capitals_thread, colors_thread, name_thread, name_thread, animal_thread, story_thread,
    story_thread, offer_thread,
)  # fmt: skip


if __name__ == "__main__":
    for text in documents(int(sys.argv[1]) if len(sys.argv) > 1 else 0, 12):
        sys.stdout.write(text + "\n\n")
