"""The generator behind the bundled model."""

import re
import sys

import pytest

from tidy.sources import ROOT

TRAIN_DEMO = ROOT / "examples" / "train_demo"


@pytest.fixture(scope="module")
def corpus():
    """The corpus module, imported as its own folder's scripts import it."""
    names = ("corpus", "stories", "words")
    sys.path.insert(0, str(TRAIN_DEMO))
    try:
        import corpus
    finally:
        sys.path.remove(str(TRAIN_DEMO))
    yield corpus
    for name in names:
        sys.modules.pop(name, None)


def test_the_same_seed_gives_the_same_documents(corpus):
    """The weights are reproducible only if their text is."""
    assert corpus.documents(5, 200) == corpus.documents(5, 200)
    assert corpus.documents(5, 200) != corpus.documents(6, 200)


def test_every_document_is_well_formed(corpus):
    """One first token, an end after every message, no slot of a template left unfilled."""
    for text in corpus.documents(1, 3000):
        assert text.startswith(corpus.BOS)
        assert text.endswith(corpus.END)
        assert text.count(corpus.BOS) == 1
        assert text.count(corpus.USER) == text.count(corpus.ASSISTANT)
        assert not re.search(
            r"[{}]|\s\s|\ba [aeiou]|\ban [^aeiou\W]", strip_unknown(corpus, text)
        ), text


def strip_unknown(corpus, text):
    """The text without questions about things that do not exist, whose articles are arbitrary."""
    question = re.compile(rf"[^>]*{re.escape(corpus.END)}{re.escape(corpus.ASSISTANT)}")
    return question.sub("", text)


def test_stories_vary(corpus):
    """Samples of a model can only differ as far as its text does."""
    openings = {text[:60] for text in corpus.documents(2, 2000)}
    assert len(openings) > 1000


def test_a_story_keeps_the_child_and_the_animal_it_was_asked_for(corpus):
    """The model learns from these to do what it is told."""
    from random import Random

    import words

    rng = Random(0)
    for animal in words.ANIMALS:
        for hero in words.GIRLS[:4]:
            text = corpus.story(rng, hero=hero, animal=animal)
            assert hero in text
            assert animal.name in text
