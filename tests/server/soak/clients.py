"""The clients of a soak: patient ones whose answers are compared, and rude ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.server.hostile import Hostile
from tests.server.soak.questions import Question, said
from tests.server.soak.wire import Reply, connection, head, read_reply

PATIENCE_S: Final = 120.0  # after which a request counts as unanswered
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Soak:
    """What all clients share.

    Attributes:
        port: of the server on loopback.
        wanted: the answer to each question, asked alone.
        hostile: bodies that must be refused.
        counts: what happened, and how often.
        faults: what must not happen.
    """

    port: int
    questions: Sequence[Question]
    wanted: Sequence[str]
    hostile: Sequence[Hostile]
    ends_at: float
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def note_fault(self, what: str) -> None:
        """Notes what must not happen."""
        self.counts["faults"] += 1
        self.faults.append(what[:500])


async def ask(port: int, question: Question, *, streamed: bool = False, pause_s: float = 0.0) -> Reply:
    """Asks, and reads the answer to its end. Raises TimeoutError if it does not come."""
    raw = json.dumps(question.body | {"stream": streamed}).encode()
    async with asyncio.timeout(PATIENCE_S), connection(port, receives=4096 if pause_s else None) as (reader, writer):
        writer.write(head(question.path, len(raw), _JSON) + raw)
        return await read_reply(reader, pause_s=pause_s)


async def one_client(soak: Soak, seed: int) -> None:
    """Asks again and again until the time is up."""
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS, strict=True)
    while time.monotonic() < soak.ends_at:
        (kind,) = rng.choices(kinds, weights)
        name = kind.__name__.strip("_")
        try:
            await kind(soak, rng)
            soak.counts[name] += 1
        except Exception as error:  # whatever it is, the soak goes on and tells it at the end
            soak.note_fault(f"{name}: {type(error).__name__}: {error}")
        await asyncio.sleep(rng.random() * 0.2)


async def _compared(soak: Soak, rng: random.Random, *, streamed: bool, pause_s: float = 0.0) -> None:
    number = rng.randrange(len(soak.questions))
    question = soak.questions[number]
    while (reply := await ask(soak.port, question, streamed=streamed, pause_s=pause_s)).status == 429:
        soak.counts["told to come again"] += 1
        await asyncio.sleep(min(float(reply.headers["retry-after"]), 5.0) * rng.random())
    if reply.status != 200:
        soak.note_fault(f"{question.path}: status {reply.status}: {reply.body[:200]!r}")
        return
    found = said(question.path, reply, streamed=streamed)
    soak.counts["compared"] += 1
    if found != soak.wanted[number]:
        soak.note_fault(f"{question.path}: another answer: {found[:200]!r} for {soak.wanted[number][:200]!r}")


async def _whole(soak: Soak, rng: random.Random) -> None:
    await _compared(soak, rng, streamed=False)


async def _stream(soak: Soak, rng: random.Random) -> None:
    await _compared(soak, rng, streamed=True)


async def _slow_reader(soak: Soak, rng: random.Random) -> None:
    await _compared(soak, rng, streamed=True, pause_s=0.05)


async def _cancelled(soak: Soak, rng: random.Random) -> None:
    """Goes away before the answer, or in the middle of its stream."""
    question, n_read = rng.choice(soak.questions), rng.choice([0, 0, 1, 3, 10])
    raw = json.dumps(question.body | {"stream": bool(n_read)}).encode()
    async with asyncio.timeout(PATIENCE_S), connection(soak.port) as (reader, writer):
        writer.write(head(question.path, len(raw), _JSON) + raw)
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.1)
        for _ in range(n_read):
            await reader.readline()


async def _half_open(soak: Soak, rng: random.Random) -> None:
    """Sends a part of a request, and then nothing for a while."""
    raw = json.dumps(soak.questions[0].body).encode()
    whole = head(soak.questions[0].path, len(raw), _JSON) + raw
    async with connection(soak.port) as (reader, writer):
        writer.write(whole[: rng.randrange(len(whole))])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.random() * 10):
                await reader.read(1)


async def _bad_body(soak: Soak, rng: random.Random) -> None:
    bad = rng.choice(soak.hostile)
    async with asyncio.timeout(PATIENCE_S), connection(soak.port) as (reader, writer):
        writer.write(head(bad.path, len(bad.raw), bad.headers) + bad.raw)
        reply = await read_reply(reader)
    if not 400 <= reply.status < 500:
        soak.note_fault(f"{bad.path}: {bad.what}: status {reply.status}: {reply.body[:200]!r}")


async def _no_http(soak: Soak, rng: random.Random) -> None:
    async with asyncio.timeout(PATIENCE_S), connection(soak.port) as (reader, writer):
        writer.write(rng.randbytes(rng.randrange(1, 300)) + b"\r\n\r\n")
        reply = await read_reply(reader)
    if reply.status != 400:
        soak.note_fault(f"no HTTP: status {reply.status}")


Kind = Callable[[Soak, random.Random], Awaitable[None]]
_KINDS: Final[list[tuple[Kind, int]]] = [
    (_whole, 30), (_stream, 25), (_slow_reader, 6), (_cancelled, 20), (_half_open, 6), (_bad_body, 10), (_no_http, 3),
]  # fmt: skip
