"""Short stories from templates: who, where and what are drawn once, so each story agrees with itself."""

from random import Random

from words import (
    ANIMALS,
    BOYS,
    FOODS,
    GIRLS,
    HAPPY,
    KIND,
    PLACES,
    RELATIVES,
    SAD,
    SKILLS,
    SPOTS,
    THINGS,
    WEATHER,
    Animal,
)  # fmt: skip

# A story is one line per sentence, with alternatives between bars; an empty alternative leaves the
# sentence out. `{name}` is a word of the cast (see `cast`).
INTRODUCTIONS = (
    "Once upon a time, there was a {girl} named {hero}.",
    "Once upon a time, there was a {kind} {girl} named {hero}.",
    "Once upon a time, a {kind} {girl} named {hero} lived near {home}.",
    "There once was a {kind} {girl} named {hero}.",
    "{hero} was a {kind} {girl} who lived near {home}.",
    "Long ago, a {girl} named {hero} lived near {home}.",
)
ENDINGS = (
    "It was a very good day.",
    "The end.",
    "{hero} never forgot that day.",
    "And they all lived happily ever after.",
)

WITH_ANIMAL = tuple(
    tuple(tuple(part.strip() for part in line.split("|")) for line in text.strip().splitlines())
    for text in (
        """
        One {weather} day, {hero} went to {place}. | On a {weather} morning, {hero} walked to {place}.
        {Sky}. |
        There {she} saw {a_adj_animal}.
        The {animal} was {sad} because it had lost {a_thing}.
        "Do not worry," said {hero}. "I will help you." | "I can help you," said {hero}.
        They looked for the {thing} {in_place2}. | They walked to {place2} to look for the {thing}.
        At last {hero} found it under {spot}. | At last {she} saw the {thing} behind {spot}.
        The {animal} was very {happy}, and {hero} was {happy} too. | "Thank you!" said the {animal}.
        """,
        """
        {hero} had {a_adj_animal}.
        Every day the {animal} liked to {verb} and eat {eat}.
        One {weather} morning the {animal} was gone.
        {hero} felt {sad} and ran to {place}. | {hero} looked for it {in_place}.
        The {animal} was there, sitting next to {a_thing}. | The {animal} was there, asleep under {spot}.
        {hero} took the {animal} home and gave it some {eat}.
        """,
        """
        Once upon a time, {a_adj_animal} lived near {place}. | Long ago, {a_adj_animal} lived near {place}.
        The {animal} wanted to see {place2}.
        It was a {weather} day and {sky}. |
        On the way the {animal} met {a_girl} named {hero}.
        {hero} gave the {animal} some {eat} and {a_thing}. | {hero} showed the {animal} the way.
        From that day, the {animal} and {hero} were good friends.
        """,
        """
        {hero} wanted to make {food}.
        {She} went to {place} to buy what {she} needed.
        {Sky}, so {she} took {a_thing}. |
        {A_animal} followed {hero} all the way home.
        {hero} shared the {food} with the {animal}. | The {animal} was hungry, so {hero} gave it some {food}.
        That night {hero} slept well and felt {happy}.
        """,
        """
        One night {hero} could not sleep.
        {She} heard a sound near the window. | There was a strange sound {in_place}.
        {hero} was {sad}, but {she} took {a_thing} and went to look.
        It was only {a_adj_animal} that wanted some {eat}.
        {hero} laughed and gave it some {eat}. | {hero} smiled and opened the door.
        After that, the {animal} came to visit every night.
        """,
        """
        {A_animal} and {a_animal2} lived {in_place}.
        The {animal} said, "I am faster than you." | "I can run faster than you," said the {animal}.
        So they had a race to {place2}. {hero} watched them.
        The {animal} stopped to eat some {eat} and fell asleep. | The {animal} stopped to look at {a_thing}.
        The {animal2} did not stop and won the race.
        "You were very good today," said the {animal}. | {hero} gave the {animal2} {a_thing}.
        """,
        """
        One {weather} day, {hero} was lost {in_place}.
        It was getting dark, and {hero} was {sad}.
        Then {a_adj_animal} came out from behind {spot}. | Then {hero} heard {a_animal}.
        "Follow me," said the {animal}. "I know the way." | The {animal} looked at {hero} and began to walk.
        They walked past {place2} until {hero} saw {her} house.
        {hero} gave the {animal} some {eat} and said thank you.
        """,
        """
        {hero} and {friend} saw {a_animal} {in_place}.
        The {animal} had hurt its leg and could not walk. | The {animal} was cold and {sad}.
        {hero} put {a_thing} next to it, and {friend} brought some {eat}. | They took it home and gave it some {eat}.
        Every day they came to see how the {animal} was.
        After a week the {animal} could walk again. | After a few days the {animal} was well again.
        {hero} and {friend} were very {happy}.
        """,
        """
        Every day {a_adj_animal} slept {in_place}.
        Nobody wanted to play with the {animal}, and it was {sad}.
        One {weather} day, {hero} came with {a_thing}. | One day {hero} sat down next to it.
        "Do you want to play with me?" asked {hero}.
        They played until the evening, and then they ate {food}.
        The {animal} was not lonely any more. | Now the {animal} had a friend.
        """,
    )
)

WITHOUT_ANIMAL = tuple(
    tuple(tuple(part.strip() for part in line.split("|")) for line in text.strip().splitlines())
    for text in (
        """
        {hero} and {friend} were good friends.
        They walked to {place} on a {weather} day. | One {weather} day they went to {place}.
        {hero} found {a_thing} under {spot}.
        "Look at this!" said {hero}.
        "It is beautiful," said {friend}. | "We should keep it," said {friend}.
        They shared some {food} and went home {happy}.
        """,
        """
        {hero} wanted to learn to {skill}.
        The first time {she} tried, it did not work, and {she} felt {sad}.
        "You must try again," said {her} {relative}. | {friend} said, "Try again tomorrow."
        So {hero} went to {place} every day to practice.
        After many days, {hero} could {skill} very well. | On a {weather} day, {she} could do it at last.
        {Her} {relative} was very {happy}.
        """,
        """
        It was the birthday of {hero}.
        {She} woke up early and felt {happy}. | {Sky}, and {hero} was {happy}.
        {Her} {relative} gave {him} {a_thing}.
        {friend} came with some {food}, and they went to {place}.
        They sang and played all day. | They played games until it was dark.
        "This is the best birthday of all," said {hero}.
        """,
        """
        {hero} found an old map in a book. | {Her} {relative} gave {hero} an old map.
        The map showed the way to {place}.
        {hero} asked {friend} to come with {him}.
        They walked for a long time, and {sky}.
        Under {spot} they found a box with {a_thing} in it.
        They took the {thing} home and kept the secret. | "We will share it," said {hero}.
        """,
        """
        {hero} put a little seed into the ground {in_place}.
        Every day {she} gave it water and waited.
        For a long time nothing happened, and {hero} was {sad}.
        "Good things take time," said {her} {relative}.
        One {weather} morning there was a tall plant with red flowers.
        {hero} gave the first flower to {friend}. | {hero} was so {happy} that {she} began to dance.
        """,
        """
        {hero} had {a_thing}, and {friend} wanted to play with it.
        "No, it is mine!" said {hero}.
        {friend} felt {sad} and went to {place}.
        Then {hero} felt {sad} too and ran after {friend}.
        "I am sorry," said {hero}. "We can play with it together."
        They played with the {thing} all day and were {happy}. | After that they shared everything.
        """,
        """
        {friend} was new at the school and did not know anyone.
        {hero} saw that {friend} was {sad}.
        "Come and sit with me," said {hero}. | {hero} gave {friend} some {food}.
        {friend} showed {hero} {a_thing} and smiled.
        After school they went to {place} together.
        The next day they were the best of friends.
        """,
        """
        One day the {thing} of {hero} was broken.
        {hero} was {sad} because it was a gift from {her} {relative}.
        {friend} said, "We can fix it." | "I know what to do," said {friend}.
        They took it to a man who worked {in_place}.
        He worked all night while {sky}.
        In the morning the {thing} was as good as new. | The next day it looked even better than before.
        """,
    )
)


def story(rng: Random, *, hero: str | None = None, animal: Animal | None = None) -> str:
    """Returns one story, about the given child and the given animal where they are named."""
    if animal is None and rng.random() < 0.4:
        template = rng.choice(WITHOUT_ANIMAL)
    else:
        template = rng.choice(WITH_ANIMAL)
    words = cast(rng, hero=hero, animal=animal)
    sentences = [rng.choice(line) for line in template]
    if not sentences[0].startswith(("Once", "Long ago")) and rng.random() < 0.4:
        sentences.insert(0, rng.choice(INTRODUCTIONS))
    if rng.random() < 0.3:
        sentences.append(rng.choice(ENDINGS))
    return " ".join(sentence.format(**words) for sentence in sentences if sentence)


def cast(rng: Random, *, hero: str | None, animal: Animal | None) -> dict[str, str]:
    """Draws the people, animals, places and things of one story, as words for a template."""
    hero = hero or rng.choice(GIRLS + BOYS)
    is_girl = hero in GIRLS
    friend = rng.choice([name for name in GIRLS + BOYS if name != hero])
    animal = animal or rng.choice(ANIMALS)
    animal2 = rng.choice([other for other in ANIMALS if other != animal])
    place, place2, home = rng.sample(PLACES, 3)
    thing = rng.choice(THINGS)
    weather, sky = rng.choice(WEATHER)
    return {
        "hero": hero,
        "friend": friend,
        "girl": "girl" if is_girl else "boy",
        "a_girl": "a girl" if is_girl else "a boy",
        "she": "she" if is_girl else "he",
        "She": "She" if is_girl else "He",
        "her": "her" if is_girl else "his",
        "Her": "Her" if is_girl else "His",
        "him": "her" if is_girl else "him",
        "kind": rng.choice(KIND),
        "animal": animal.name,
        "animal2": animal2.name,
        "a_animal": with_article(animal.name),
        "A_animal": capitalized(with_article(animal.name)),
        "a_animal2": with_article(animal2.name),
        "a_adj_animal": with_article(f"{animal.adjective} {animal.name}"),
        "verb": animal.verb,
        "eat": animal.food,
        "place": place.name,
        "in_place": f"{place.preposition} {place.name}",
        "place2": place2.name,
        "in_place2": f"{place2.preposition} {place2.name}",
        "home": home.name,
        "thing": thing,
        "a_thing": with_article(thing),
        "spot": rng.choice(SPOTS),
        "weather": weather,
        "sky": sky,
        "Sky": capitalized(sky),
        "happy": rng.choice(HAPPY),
        "sad": rng.choice(SAD),
        "food": rng.choice(FOODS),
        "skill": rng.choice(SKILLS),
        "relative": rng.choice(RELATIVES),
    }


def with_article(noun: str) -> str:
    """Returns the noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalized(text: str) -> str:
    """Returns the text with its first letter in upper case and the rest as it is."""
    return text[0].upper() + text[1:]
