"""The words the demo model knows: names, animals, places, and the facts it is asked about."""

from typing import NamedTuple


class Animal(NamedTuple):
    """One animal and what is said about it."""

    name: str
    adjective: str
    verb: str
    food: str


class Place(NamedTuple):
    """A place with the preposition it takes: "on", "the beach"."""

    preposition: str
    name: str


GIRLS = (
    "Anna", "Clara", "Emma", "Grace", "Ivy", "Lily", "Nora", "Ruby", "Mia", "Rosa", "Alice", "Zoe",
)  # fmt: skip
BOYS = (
    "Ben", "David", "Finn", "Henry", "Jack", "Max", "Oscar", "Sam", "Tom", "Leo", "Hugo", "Paul",
)  # fmt: skip

ANIMALS = tuple(
    Animal(*line.split(", "))
    for line in """
cat, soft, meow, fish
dog, friendly, bark, bones
bird, small, sing, seeds
horse, strong, run, hay
rabbit, quick, hop, carrots
fox, clever, hide, berries
bear, big, growl, honey
duck, happy, quack, bread
mouse, tiny, squeak, cheese
frog, green, jump, flies
owl, wise, hoot, mice
cow, calm, moo, grass
sheep, woolly, bleat, clover
lion, brave, roar, meat
turtle, slow, swim, leaves
monkey, funny, climb, bananas
pig, pink, roll in the mud, corn
squirrel, busy, collect things, nuts
""".strip().splitlines()
)

PLACES = tuple(
    Place(*line.split(", "))
    for line in """
in, the park
in, the forest
on, the beach
in, the garden
on, the farm
by, the river
at, the market
at, the school
on, the hill
by, the lake
in, the old house
in, the village
by, the mill
on, the island
""".strip().splitlines()
)

THINGS = (
    "red ball", "blue kite", "small box", "wooden boat", "yellow hat", "silver key", "old book",
    "green lamp", "shiny stone", "warm blanket", "paper map", "little bell", "golden ring",
    "tin drum", "glass bottle", "white feather",
)  # fmt: skip
SPOTS = (
    "a tree", "a big stone", "a bench", "a bush", "an old bridge", "a pile of leaves",
)  # fmt: skip
WEATHER = (
    ("sunny", "the sun was bright"),
    ("rainy", "the rain fell softly"),
    ("windy", "the wind was strong"),
    ("snowy", "the snow was white"),
    ("cloudy", "the sky was grey"),
    ("warm", "the air was warm"),
    ("cold", "the ground was frozen"),
)
HAPPY = ("happy", "proud", "excited", "glad", "cheerful")
SAD = ("sad", "worried", "afraid", "tired", "lonely")
KIND = ("kind", "curious", "brave", "quiet", "clever", "cheerful")
FOODS = ("bread", "soup", "apples", "cake", "cheese", "rice", "honey", "berries", "pancakes")
SKILLS = (
    "swim", "dance", "ride a bike", "play the drum", "paint a picture", "whistle", "bake bread",
    "sail a boat",
)  # fmt: skip
RELATIVES = ("grandmother", "grandfather", "mother", "father", "aunt", "uncle")

COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "coal": "black",
    "a tomato": "red", "an orange": "orange", "milk": "white", "a lemon": "yellow",
    "a leaf": "green", "the night": "dark", "blood": "red", "a cloud": "white", "gold": "yellow",
    "the sea": "blue", "a carrot": "orange", "chocolate": "brown", "a strawberry": "red",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("day", "night"), ("happy", "sad"),
    ("up", "down"), ("open", "closed"), ("light", "dark"), ("old", "young"), ("wet", "dry"),
    ("hard", "soft"), ("rich", "poor"), ("full", "empty"), ("early", "late"), ("strong", "weak"),
    ("high", "low"), ("left", "right"), ("true", "false"), ("long", "short"), ("clean", "dirty"),
)  # fmt: skip
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin",
    "England": "London", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo",
    "Greece": "Athens", "Norway": "Oslo", "Portugal": "Lisbon", "Austria": "Vienna",
    "Poland": "Warsaw", "Ireland": "Dublin", "Canada": "Ottawa", "Russia": "Moscow",
    "Sweden": "Stockholm", "Denmark": "Copenhagen", "Hungary": "Budapest", "India": "New Delhi",
    "Kenya": "Nairobi", "Peru": "Lima", "Cuba": "Havana", "Belgium": "Brussels",
}  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
USES = {
    "a key": "open a door", "a pen": "write a letter", "a knife": "cut bread",
    "a boat": "cross a river", "a lamp": "see in the dark", "a bed": "sleep at night",
    "a cup": "drink water", "a map": "find the way", "an umbrella": "stay dry in the rain",
    "a clock": "know the time", "a book": "read a story", "a spoon": "eat soup",
    "a broom": "clean the floor", "a bell": "call your friends",
}  # fmt: skip

UNKNOWN_TOPICS = (
    "quantum physics", "the stock market", "machine learning", "a black hole", "the president",
    "the election", "Python code", "the internet", "a computer", "gravity", "philosophy",
    "the meaning of life", "chemistry", "the moon landing", "football", "tax law", "electricity",
    "the Roman Empire", "an airplane", "a database", "climate change", "democracy", "a virus",
    "the universe", "a guitar chord", "algebra", "a rocket engine", "the economy", "history",
    "a robot", "medicine", "the news", "a neural network", "the speed of light", "a recipe",
    "a phone", "Mars", "the stars", "a poem", "music", "a car", "love", "war", "money",
)  # fmt: skip
UNKNOWN_QUESTIONS = (
    "Explain {x}.", "What is {x}?", "How does {x} work?", "Who invented {x}?", "Why is there {x}?",
    "Tell me about {x}.", "What do you think about {x}?", "When did {x} begin?",
    "Write an essay about {x}.", "How do I use {x}?", "Where can I find {x}?",
    "What is the price of {x}?", "Who is the best at {x}?", "How old is {x}?",
    "Can you help me with {x}?", "How big is {x}?", "What is the capital of {x}?",
    "Translate {x} into French.", "Give me a list of facts on {x}.", "How many people know {x}?",
)  # fmt: skip
SYSTEM_MESSAGES = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Be brief.",
    "You tell stories.", "Answer the question.", "You are a very small language model.",
    "You are a helpful assistant. Answer in one sentence.", "Always be kind and polite.",
)  # fmt: skip
