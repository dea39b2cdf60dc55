"""Sums and small problems in words, with solutions step by step: text that nobody owns and no model learnt by heart.

Everything comes from a seed, so every machine makes the same texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

_THINGS: Final = ("apples", "books", "coins", "stamps", "pencils", "marbles", "tickets", "cards", "eggs", "bricks")
_NAMES: Final = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas")
_PER_PAGE: Final = 18  # problems

Problem = tuple[str, str]  # the question, and its solution


def problems(n: int, seed: str) -> list[Problem]:
    """`n` problems with their solutions; the same ones for the same seed."""
    rng = random.Random(f"mimo-gguf {seed}")
    return [rng.choice(_FORMS)(rng) for _ in range(n)]


def page(number: int) -> str:
    """A page of solved problems, about 2000 characters; page by page they differ."""
    solved = problems(_PER_PAGE, f"page {number}")
    return "\n\n".join(f"Problem {i}. {question}\nSolution. {answer}" for i, (question, answer) in enumerate(solved, 1))


def _sum(rng: random.Random) -> Problem:
    numbers = [rng.randrange(10, 10 ** rng.randrange(2, 6)) for _ in range(rng.randrange(2, 5))]
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    return f"What is {' + '.join(map(str, numbers))}?", f"{'; '.join(steps)}. The sum is {total}."


def _difference(rng: random.Random) -> Problem:
    larger, smaller = sorted((rng.randrange(100, 100_000), rng.randrange(10, 10_000)), reverse=True)
    check = f"Check: {larger - smaller} + {smaller} = {larger}."
    return f"Compute {larger} - {smaller}.", f"{larger} - {smaller} = {larger - smaller}. {check}"


def _product(rng: random.Random) -> Problem:
    a, b = rng.randrange(12, 999), rng.randrange(12, 99)
    tens, ones = b // 10 * 10, b % 10
    parts = f"{a} * {tens} = {a * tens} and {a} * {ones} = {a * ones}"
    return f"Multiply {a} by {b}.", f"{b} = {tens} + {ones}. {parts}, so the product is {a * b}."


def _division(rng: random.Random) -> Problem:
    divisor, quotient = rng.randrange(3, 60), rng.randrange(10, 900)
    rest = rng.randrange(divisor)
    number = divisor * quotient + rest
    proof = f"{divisor} * {quotient} = {divisor * quotient}, and {number} - {divisor * quotient} = {rest}"
    return f"Divide {number} by {divisor}, with remainder.", f"{proof}. The quotient is {quotient}, remainder {rest}."


def _equation(rng: random.Random) -> Problem:
    x, a, b = rng.randrange(-30, 31), rng.randrange(2, 13), rng.randrange(1, 60)
    right = a * x + b
    return f"Solve {a}x + {b} = {right} for x.", f"{a}x = {right} - {b} = {right - b}, so x = {right - b} / {a} = {x}."


def _percent(rng: random.Random) -> Problem:
    percent, base = rng.choice((5, 10, 15, 20, 25, 30, 40, 60, 75)), rng.randrange(2, 90) * 20
    result = percent * base // 100
    return f"What is {percent} % of {base}?", f"{percent} / 100 * {base} = {percent * base} / 100 = {result}."


def _shop(rng: random.Random) -> Problem:
    first, second = rng.sample(_NAMES, 2)
    things, n, more, price = rng.choice(_THINGS), rng.randrange(3, 40), rng.randrange(2, 25), rng.randrange(2, 30)
    question = (
        f"{first} buys {n} {things} for {price} cents each. {second} buys {more} {things} more than {first}. "
        f"How much do they pay together?"
    )
    total = n + n + more
    answer = f"{second} buys {n} + {more} = {n + more}. Together that is {n} + {n + more} = {total} {things}."
    return question, f"{answer} They pay {total} * {price} = {total * price} cents."


def _sequence(rng: random.Random) -> Problem:
    start, step, n = rng.randrange(1, 50), rng.randrange(2, 25), rng.randrange(8, 40)
    shown = ", ".join(str(start + i * step) for i in range(5))
    last = start + (n - 1) * step
    return (
        f"The sequence {shown}, ... goes on in the same way. Find its term number {n}.",
        f"Each term is {step} more than the last. Term {n} is {start} + {n - 1} * {step} = {last}.",
    )


_FORMS: Final[tuple[Callable[[random.Random], Problem], ...]] = (
    _sum, _difference, _product, _division, _equation, _percent, _shop, _sequence,
)  # fmt: skip
