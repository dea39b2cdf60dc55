"""Whose turn it is: by priority, then each client in turn, as a scheduler with any number of slots asks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mimo_gguf.runtime.line import Line


@dataclass(frozen=True, slots=True)
class Asked:
    id: int
    client: str = ""
    priority: int = 0


def served(line: Line[Asked], n_slots: int, arriving: dict[int, list[Asked]] | None = None) -> list[int]:
    """The numbers in the order in which they get one of `n_slots`, which are freed in turn.

    Args:
        arriving: those that come after so many were served.
    """
    running: list[Asked] = []
    order: list[int] = []
    while True:
        for late in (arriving or {}).get(len(order), []):
            line.add(late)
        if len(running) == n_slots:
            running.pop(0)
        job = line.next(running)
        if job is None:
            return order
        line.serve(job)
        running.append(job)
        order.append(job.id)


@pytest.mark.parametrize("n_slots", [1, 2, 4])
def test_a_client_with_many_requests_does_not_starve_another(n_slots: int) -> None:
    line: Line[Asked] = Line()
    for number in range(100):
        line.add(Asked(number, "many"))
    late = [Asked(1000 + number, "few") for number in range(3)]
    order = served(line, n_slots, {10: late})
    assert sorted(order) == [*range(100), 1000, 1001, 1002], "everyone is served once"
    places = [order.index(job.id) for job in late]
    assert places[0] == 10 and places[-1] <= 10 + 3 * 2
    assert [number for number in order if number < 1000] == list(range(100)), "a client's own keep their order"


def test_three_clients_share_alike() -> None:
    line: Line[Asked] = Line()
    for number in range(30):
        line.add(Asked(number, "abc"[number // 10]))
    order = served(line, 3)
    for turn in range(0, 30, 3):
        assert sorted(number // 10 for number in order[turn : turn + 3]) == [0, 1, 2]


def test_a_client_that_always_has_one_waiting_does_not_always_go_first() -> None:
    line: Line[Asked] = Line()
    for number in range(10):
        line.add(Asked(number, "many"))
    again = {turn: [Asked(100 + turn, "steady")] for turn in range(12)}
    order = served(line, 1, again)
    assert sum(number < 100 for number in order[:10]) == 5


def test_the_background_waits() -> None:
    line: Line[Asked] = Line()
    for number in range(5):
        line.add(Asked(number, "batch", -1))
    line.add(Asked(10, "a"))
    line.add(Asked(11, "b", 1))
    assert (len(line), line.n_from(-1), line.n_from(0), line.n_from(1)) == (7, 7, 2, 1)
    assert served(line, 2, {3: [Asked(12, "a")]}) == [11, 10, 0, 12, 1, 2, 3, 4]


def test_who_is_passed_over_or_removed() -> None:
    line: Line[Asked] = Line()
    jobs = [Asked(number, "a" if number < 2 else "b") for number in range(4)]
    for job in jobs:
        line.add(job)
    assert line.next([], without={0}) == jobs[1]
    assert line.next([jobs[0]]) == jobs[2], "the other client has no slot"
    line.remove(jobs[0])
    line.remove(jobs[0])
    assert line.next([]) == jobs[1] and len(line) == 3
    for job in jobs[1:]:
        line.serve(job)
    assert line.next([]) is None and len(line) == 0
