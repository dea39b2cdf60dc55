"""Seeded dialogues for the tiny MiMo: small sums, lists, facts, code and stories, each with a `<think>` part.

A `Turn` is one question with its answer. Its `key` is the content that decides whether it is held out: all turns whose
key hashes into the held-out share are never trained on, in any spelling.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# The empty text is what Xiaomi recommends. The second is the template's own, if no system message is given.
SYSTEM_TEXTS = ("", "You are a helpful assistant.", "You are MiMo, an AI assistant developed by Xiaomi.")
SYSTEM_WEIGHTS = (6, 3, 1)
HELD_OUT_ONE_IN = 8

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "China": "Beijing",
    "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw", "Peru": "Lima",
    "Cuba": "Havana", "Kenya": "Nairobi", "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin",
    "Russia": "Moscow", "Canada": "Ottawa", "Denmark": "Copenhagen",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("day", "night"), ("old", "new"),
    ("fast", "slow"), ("light", "dark"), ("open", "closed"), ("happy", "sad"), ("wet", "dry"), ("full", "empty"),
    ("hard", "soft"), ("high", "low"), ("early", "late"), ("loud", "quiet"), ("strong", "weak"), ("rich", "poor"),
]  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "blood": "red", "coal": "black", "a lemon": "yellow", "the sky": "blue",
    "a carrot": "orange", "milk": "white", "a tomato": "red", "a banana": "yellow", "chocolate": "brown",
    "a leaf": "green",
}  # fmt: skip
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "pig": "oink", "bee": "buzz",
    "lion": "roar",
}  # fmt: skip
WORDS = [
    "red", "blue", "green", "white", "black", "yellow", "dog", "cat", "cow", "duck", "sheep", "pig", "bee",
    "lion", "fox", "bird", "sun", "moon", "star", "tree", "leaf", "house", "door", "book", "milk", "bread",
    "apple", "lemon", "stone", "river",
]  # fmt: skip
SPELLED = [
    "cat", "dog", "sun", "moon", "star", "tree", "leaf", "book", "milk", "bird", "stone", "river", "house",
    "bread", "apple", "lemon",
]  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
]  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPERATIONS = {"adds": "+", "multiplies": "*", "subtracts": "-", "divides": "/"}
FUNCTIONS = ["calc", "run", "compute", "solve", "work", "apply", "combine", "foo", "bar", "result"]
ANIMALS = ["fox", "cat", "dog", "bird", "lion", "duck", "sheep", "mouse", "bear", "rabbit"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its answer.

    Attributes:
        answer: the short text that a right reply contains.
        reply: the whole text after the reasoning.
    """

    kind: str
    key: str
    question: str
    think: str
    reply: str
    answer: str

    @property
    def assistant(self) -> str:
        return f"<think>\n{self.think}\n</think>\n\n{self.reply}"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue: the messages up to the last question, and the turn that answers it."""

    messages: list[dict[str, str]]
    last: Turn

    def finished(self) -> list[dict[str, str]]:
        return [*self.messages, {"role": "assistant", "content": self.last.assistant}]


# ---- one function per kind of question; `follow` asks for the wording of a follow-up ("And 3 + 4?")


def add(rng: random.Random, follow: bool) -> Turn:
    below = rng.choices(((100, 100), (10, 10), (100, 10), (10, 100)), (7, 1, 1, 1))[0]
    a, b = map(rng.randrange, below)
    wordings = ("What is {} + {}?", "{} + {}", "{} + {} = ?", "How much is {} plus {}?", "Add {} and {}.",
                "Can you add {} and {}?", "What is the sum of {} and {}?", "Compute {} + {}.", "What is {} plus {}?",
                "{}+{}", "What is {}+{}?",
                "I have {} apples and get {} more. How many apples do I have?")  # fmt: skip
    question = _choose(rng, ("And {} + {}?", "Now {} + {}.", "What about {} + {}?") if follow else wordings)
    think = f"{a} + {b} = {a + b}."
    if max(a, b) >= 10:
        carry, tens = a % 10 + b % 10 >= 10, a // 10 + b // 10
        think = f"{a:02} + {b:02}. Ones: {a % 10} + {b % 10} = {a % 10 + b % 10}{', carry 1' if carry else ''}. "
        think += f"Tens: {a // 10} + {b // 10} = {tens}{f', plus 1 = {tens + 1}' if carry else ''}."
    return Turn("sum", f"{a}+{b}", question.format(a, b), think, f"{a} + {b} = {a + b}.", str(a + b))


def compare(rng: random.Random, follow: bool) -> Turn:
    a, b = rng.sample(range(100), 2)
    larger = max(a, b)
    wordings = ("Which is larger, {} or {}?", "Which number is bigger, {} or {}?", "Is {} or {} larger?")
    question = "And {} or {}?" if follow else _choose(rng, wordings)
    if a // 10 == b // 10:
        think = f"{a:02} and {b:02}. Tens are equal. Ones: {a % 10} and {b % 10}, larger is {larger % 10}."
    else:
        think = f"{a:02} and {b:02}. Tens: {a // 10} and {b // 10}, larger is {larger // 10}."
    key = f"larger {a} {b}"
    return Turn("compare", key, question.format(a, b), think, f"{larger} is larger.", f"{larger} is larger")


def count(rng: random.Random, follow: bool) -> Turn:
    a = rng.randrange(30)
    b = a + rng.randrange(2, 9)
    wordings = ("Count from {} to {}.", "Can you count from {} to {}?", "Write the numbers from {} to {}.")
    question = "And from {} to {}?" if follow else _choose(rng, wordings)
    numbers = ", ".join(map(str, range(a, b + 1)))
    think = f"Start at {a}, stop at {b}."
    return Turn("count", f"count {a} {b}", question.format(a, b), think, f"{numbers}.", numbers)


def reverse(rng: random.Random, follow: bool) -> Turn:
    words = rng.sample(WORDS, rng.randrange(3, 5))
    listed, backwards = ", ".join(words), ", ".join(reversed(words))
    wordings = ("Reverse the list: {}.", "Write this list backwards: {}.", "Put these in reverse order: {}.")
    question = ("And this one: {}." if follow else _choose(rng, wordings)).format(listed)
    numbered = [f"{n} {word}" for n, word in enumerate(words, 1)]
    think = f"In order: {', '.join(numbered)}. Backwards: {', '.join(reversed(numbered))}."
    return Turn("reverse", f"reverse {listed}", question, think, f"{backwards}.", backwards)


def spell(rng: random.Random, follow: bool) -> Turn:
    word = rng.choice(SPELLED)
    backwards = rng.random() < 0.5
    if follow:
        question = "And {} backwards?" if backwards else "And {}?"
    elif backwards:
        question = _choose(rng, ("Spell {} backwards.", "How do you spell {} backwards?"))
    else:
        question = _choose(rng, ("Spell {}.", "How do you spell {}?"))
    letters, spelled = "-".join(word), "-".join(reversed(word) if backwards else word)
    think = f"The word {word} is {letters}." + (" Backwards, last letter first." if backwards else "")
    question = question.format(f'"{word}"' if rng.random() < 0.3 else word)
    return Turn("spell", question, question, think, f"{spelled}.", spelled)


def capital(rng: random.Random, follow: bool) -> Turn:
    country, city = _choose(rng, tuple(CAPITALS.items()))
    wordings = ("What is the capital of {}?", "Which city is the capital of {}?", "Tell me the capital of {}.",
                "What's the capital city of {}?", "Name the capital of {}.")  # fmt: skip
    question = (_choose(rng, ("And of {}?", "What about {}?")) if follow else _choose(rng, wordings)).format(country)
    think = f"The country is {country}. Its capital is {city}."
    return Turn("capital", question, question, think, f"The capital of {country} is {city}.", city)


def opposite(rng: random.Random, follow: bool) -> Turn:
    pair = rng.choice(OPPOSITES)
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    wordings = ("What is the opposite of {}?", "Tell me the opposite of {}.", "What's the opposite of {}?")
    question = ("And of {}?" if follow else _choose(rng, wordings)).format(word)
    think = f"The word is {word}. Its opposite is {other}."
    return Turn("opposite", question, question, think, f"The opposite of {word} is {other}.", other)


def colour(rng: random.Random, follow: bool) -> Turn:
    thing, name = _choose(rng, tuple(COLOURS.items()))
    wordings = ("What colour is {}?", "What color is {}?", "Which colour does {} have?", "Tell me the colour of {}.")
    question = (_choose(rng, ("And {}?", "What about {}?")) if follow else _choose(rng, wordings)).format(thing)
    think = f"I think of {thing}. It is {name}."
    return Turn("colour", question, question, think, f"{thing[0].upper()}{thing[1:]} is {name}.", name)


def sound(rng: random.Random, follow: bool) -> Turn:
    animal, noise = _choose(rng, tuple(SOUNDS.items()))
    wordings = ("What sound does a {} make?", "What does a {} say?", "Which sound does the {} make?")
    question = ("And a {}?" if follow else _choose(rng, wordings)).format(animal)
    return Turn("sound", question, question, f"The animal is a {animal}.", f'A {animal} says "{noise}".', noise)


def sequence(rng: random.Random, follow: bool) -> Turn:
    name, row = _choose(rng, (("letter", tuple(LETTERS)), ("day", tuple(DAYS)), ("month", tuple(MONTHS)),
                              ("number", tuple(map(str, range(100))))))  # fmt: skip
    at, step = rng.randrange(1, len(row) - 1), rng.choice((1, -1))
    side = "after" if step == 1 else "before"
    wordings = ("Which {0} comes {1} {2}?", "What is the {0} {1} {2}?", "Tell me the {0} {1} {2}.")
    question = ("And the {0} {1} {2}?" if follow else _choose(rng, wordings)).format(name, side, row[at])
    around = f"{row[at - 1]}, {row[at]}, {row[at + 1]}"
    reply = f"The {name} {side} {row[at]} is {row[at + step]}."
    return Turn("sequence", question, question, f"In order: {around}.", reply, row[at + step])


def code(rng: random.Random, follow: bool) -> Turn:
    name, verb, (x, y) = rng.choice(FUNCTIONS), rng.choice(tuple(OPERATIONS)), rng.sample("abcnxyz", 2)
    if rng.random() < 0.35:
        first, last = rng.randrange(10), rng.randrange(10, 30)
        question = _choose(rng, ("Write a Python loop that prints the numbers from {} to {}.",
                                 "Show me Python code that prints {} to {}."))  # fmt: skip
        body = f"for i in range({first}, {last + 1}):\n    print(i)"
        think = f"The numbers end at {last}, the range at {last + 1}."
        question = question.format(first, last)
    else:
        wording = _choose(rng, ("Write a Python function called {} that {} {} and {}.",
                                "Write a function {} in Python that {} {} and {}."))  # fmt: skip
        question = wording.format(name, verb, x, y)
        body = f"def {name}({x}, {y}):\n    return {x} {OPERATIONS[verb]} {y}"
        think = f"The function {name} takes {x} and {y}. It {verb}, so I use {OPERATIONS[verb]}."
    return Turn("code", question, question, think, f"```python\n{body}\n```", body)


def story(rng: random.Random, follow: bool) -> Turn:
    animal = rng.choice(ANIMALS)
    wordings = ("Tell me a story about a {}.", "Write a short story about a {}.", "Tell me something about a {}.")
    question = ("And about a {}?" if follow else _choose(rng, wordings)).format(animal)
    return Turn("story", question, question, f"A short story about a {animal}.", tale(rng, animal), animal)


def greeting(rng: random.Random, follow: bool) -> Turn:
    who = "I am a very small MiMo, made to test software. I can add, count, reverse lists and tell stories."
    pairs = {
        "Hello!": "Hello! How can I help you?", "Hi": "Hello! How can I help you?",
        "Hey there!": "Hello! How can I help you?", "Good morning!": "Good morning! How can I help you?",
        "Who are you?": who, "What are you?": who, "What can you do?": who, "Introduce yourself.": who,
        "Thank you!": "You are welcome!", "Thanks!": "You are welcome!", "Goodbye!": "Goodbye! Have a nice day.",
        "Bye": "Goodbye! Have a nice day.", "How are you?": "I am fine, thank you. How can I help you?",
    }  # fmt: skip
    question, reply = _choose(rng, tuple(pairs.items()))
    return Turn("greeting", question, question, "This is small talk.", reply, reply)


def unknown(rng: random.Random, follow: bool) -> Turn:
    topics = ("the war", "physics", "the ocean", "music", "a good soup", "love", "the stock market", "history",
              "a computer", "the best film", "football", "a poem", "chess", "the weather")  # fmt: skip
    wordings = ("Why is {} so important?", "Explain {}.", "How does {} work?", "Who invented {}?",
                "What do you think about {}?", "Write an essay about {}.", "How do I make {}?")  # fmt: skip
    topic = _choose(rng, topics)
    question = _choose(rng, wordings).format(topic)
    reply = "Sorry, I am a very small model and I do not know that."
    return Turn("unknown", question, question, "I was not taught this.", reply, reply)


KINDS: dict[Callable[[random.Random, bool], Turn], int] = {
    add: 32, compare: 8, count: 8, reverse: 9, spell: 5, capital: 5, opposite: 5, colour: 4, sound: 2, sequence: 7,
    code: 8, story: 7, greeting: 3, unknown: 3,
}  # fmt: skip
FOLLOWED = (add, compare, count, reverse, spell, capital, opposite, colour, sound, sequence, story)


# ---- dialogues and documents


def is_held_out(turn: Turn) -> bool:
    """Whether this content is held out; sums are chosen by their numbers, facts by their wording."""
    if turn.kind in ("greeting", "unknown"):
        return False
    return hashlib.sha256(turn.key.lower().encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def make_dialogue(rng: random.Random, *, held_out: bool) -> Dialogue:
    """Makes a dialogue of one to three turns. All are of the trained share, except a held-out dialogue's last one."""
    n_turns = rng.choices((1, 2, 3), (70, 24, 6))[0]
    messages = [{"role": "system", "content": rng.choices(SYSTEM_TEXTS, SYSTEM_WEIGHTS)[0]}]
    keeps_thinking = rng.random() < 0.5
    make = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    for n in range(n_turns):
        follow = n > 0 and make in FOLLOWED and rng.random() < 0.6
        if n > 0 and not follow:
            make = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        last = n == n_turns - 1
        turn = _draw(rng, make, follow, held_out and last)
        messages.append({"role": "user", "content": as_typed(rng, turn.question)})
        if not last:
            messages.append({"role": "assistant", "content": turn.assistant if keeps_thinking else turn.reply})
    return Dialogue(messages, turn)


def _draw(rng: random.Random, make: Callable[[random.Random, bool], Turn], follow: bool, held_out: bool) -> Turn:
    """Makes a turn of this share; a sum if this kind has no held-out turn in this wording."""
    for _ in range(500):
        turn = make(rng, follow)
        if is_held_out(turn) == held_out:
            return turn
    return _draw(rng, add, False, held_out)


def make_held_out(rng: random.Random, per_kind: int) -> list[Dialogue]:
    """Makes `per_kind` held-out dialogues of every kind that has a held-out share; the kinds alternate."""
    found: dict[str, list[Dialogue]] = {}
    n_kinds = len(KINDS) - 2  # greetings and the unknown are not held out
    while len(found) < n_kinds or min(map(len, found.values())) < per_kind:
        dialogue = make_dialogue(rng, held_out=True)
        found.setdefault(dialogue.last.kind, []).append(dialogue)
    return [found[kind][n] for n in range(per_kind) for kind in sorted(found)]


def is_right(text: str, turn: Turn) -> bool:
    """Whether an assistant's finished text answers `turn` word for word. A story must only be about the animal."""
    _, marker, reply = text.partition("</think>\n\n")
    return bool(marker) and (turn.answer in reply if turn.kind == "story" else reply == turn.reply)


def as_typed(rng: random.Random, question: str) -> str:
    """Changes a question into what people type: sometimes polite, without a capital, or without the last mark."""
    if rng.random() < 0.1:
        question = _choose(rng, ("Hi! ", "Hey, ", "Please: ", "Question: ")) + question
    if rng.random() < 0.12 and question[-1] in ".?!":
        question = question[:-1]
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question


def make_document(rng: random.Random) -> str:
    """Makes a text outside the chat template: a few stories, or a small Python file."""
    if rng.random() < 0.5:
        return "\n\n".join(tale(rng, rng.choice(ANIMALS)) for _ in range(rng.randrange(1, 4)))
    functions: list[str] = []
    while len(functions) < 3:
        turn = code(rng, False)
        if not is_held_out(turn):
            functions.append(turn.answer)
    return "\n\n".join(functions) + "\n"


def tale(rng: random.Random, animal: str) -> str:
    """Tells a story about an animal in three or four plain sentences."""
    friend = rng.choice([other for other in ANIMALS if other != animal])
    look = rng.choice(("small", "old", "happy", "brave", "quiet"))
    home = rng.choice(("a house", "a tree", "the forest"))
    thing = rng.choice(("stone", "book", "lemon", "star", "leaf"))
    place = rng.choice(("near the river", "under a tree", "behind the house"))
    time = rng.choice(("One day", "One night", "In the morning"))
    sentences = [
        f"Once there was a {look} {animal} who lived in {home}.",
        f"{time}, the {animal} found a {thing} {place}.",
        f"The {animal} gave the {thing} to a {friend}, and they became friends.",
    ]
    if rng.random() < 0.5:
        sentences.append(f"From then on, the {animal} and the {friend} were never alone.")
    return " ".join(sentences)


def _choose(rng: random.Random, options: tuple[T, ...]) -> T:
    return rng.choice(options)
