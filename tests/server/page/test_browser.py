"""The page in a real browser: asking, stopping, branches, what is kept, hostile answers, keyboard, screen readers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.engine import Limits
from mimo_gguf.server.models import Models, Served
from mimo_gguf.server.settings import Settings, key_digests
from tests.server.page.cable import cable
from tests.server.page.scripted import Said, ScriptedEngine
from tests.server.serving import Loaded, Serving, serving, serving_models

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
browser_module = pytest.importorskip("tests.server.page.browser", reason="selenium is not installed")
Browser, Keys, chromium = browser_module.Browser, browser_module.Keys, browser_module.chromium

MATHS = r"""For \(ax^2 + bx + c = 0\) with \(a \neq 0\), complete the square:

\[
\begin{aligned}
x^2 + \frac{b}{a}x &= -\frac{c}{a} \\
\left(x + \frac{b}{2a}\right)^2 &= \frac{b^2 - 4ac}{4a^2}
\end{aligned}
\]

Taking roots gives the formula

$$x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}.$$

### How many solutions there are

| Discriminant | Real solutions | Example |
|:--|--:|:--|
| \(\Delta > 0\) | 2 | \(x^2 - 3x + 2 = 0\) |
| \(\Delta = 0\) | 1 | \(x^2 - 2x + 1 = 0\) |
| \(\Delta < 0\) | 0 | \(x^2 + 1 = 0\) |

1. **Compute** the discriminant.
2. If it is *negative*, stop: there is no real solution.
3. Otherwise use the formula; see [the derivation](https://example.org/derivation).

```python
def solve(a: float, b: float, c: float) -> list[float]:
    \"\"\"The real solutions of ax² + bx + c = 0, the smaller one first.\"\"\"
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return []  # none is real
    root = discriminant**0.5
    return sorted({(-b - root) / (2 * a), (-b + root) / (2 * a)})
```

> A double root is one solution, not two: `solve(1, -2, 1)` gives `[1.0]`.

The final answer for \(x^2 - 3x + 2 = 0\) is \(\boxed{x \in \{1, 2\}}\).
""".replace('\\"', '"')
WIDE = f"{'| column ' * 40}|\n{'|---' * 40}|\n{'| wordswords ' * 40}|\n\n"
HOSTILE = (
    "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\n\n"
    "[a](javascript:window.broken=1) <a href='javascript:window.broken=1'>b</a> ![c](https://c.example/c.png)\n\n"
    "$\\href{javascript:window.broken=1}{x}$ \\(\\text{<img src=x onerror=window.broken=1>}\\)\n\n"
    + WIDE
    + "שלום עולם, זה טקסט מימין לשמאל.\n\n"
    + "unbroken" * 100
    + "\n\n```html\n<script>window.broken = 1</script>\n```\n\n"
    "</div></article><style>body { display: none }</style>\u202eafter"
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("downloads")) as found:
        yield found


@pytest.fixture
def page(browser: Any, scripted: Serving) -> Iterator[Any]:
    """The page of the scripted server, which says what it has to `Said` of `page.says`."""
    browser.look(1280, 860)
    browser.faults()
    browser.open(scripted.url)
    yield browser
    assert not [fault for fault in browser.faults() if "favicon" not in fault]


def engine_of(server: Serving) -> ScriptedEngine:
    engine = server.engine
    assert isinstance(engine, ScriptedEngine)
    return engine


def says(server: Serving, question: str, text: str, thinking: str = "", **how: Any) -> Said:
    said = engine_of(server).script.answers[question] = Said(text, thinking, **how)
    return said


def test_asking(page: Any, scripted: Serving) -> None:
    says(scripted, "quadratic", MATHS, "The user asks for a formula. " * 20, pace_s=0.002)
    assert page.one("#empty h2").text == "MiMo-7B-RL-Q4_K_M" and "1,024 tokens" in page.one("#empty .facts").text
    page.picture("empty-1280-light")
    page.ask("Derive the quadratic formula.")
    page.until(lambda: "Thinking" in page.one(".thought summary").text)
    page.picture("thinking-1280-light")
    page.ended()
    assert not page.all("#empty:not([hidden])")
    assert len(page.all(".answer math")) > 8 and len(page.all(".answer table tr")) == 4
    assert page.all(".answer .code .c-k") and page.one(".answer .in-box").is_displayed()
    assert " tokens · " in page.one(".meta").text and "Thought, 145 tokens" in page.one(".thought summary").text
    assert not page.one(".thought .text").is_displayed()
    page.click(".thought summary")
    page.until(lambda: page.one(".thought .text").is_displayed())
    assert page.one(".thought .text").text.startswith("The user asks")
    page.click(".thought summary")
    line = page.one("#line").text
    assert "tok/s" in line and "% of drafts right" in line and "of 1,024 tokens" in line
    assert page.driver.title.startswith("Derive the quadratic formula")


def test_what_happens_before_the_first_word(page: Any, scripted: Serving) -> None:
    gate = threading.Event()
    says(scripted, "slow", "done", reads=(256, 512, 700), pace_s=0.4, gate=gate)
    page.ask("A slow one")
    page.until(lambda: "Reading the question, 512 of 700 tokens" in page.one(".waits").text)
    assert page.all(".waits progress") and page.runs
    page.picture("reading-1280-light")
    gate.set()
    page.ended()
    assert page.answer() == "done" and not page.one(".waits").is_displayed()


def test_stop_go_on_and_answer_again(page: Any, scripted: Serving) -> None:
    words = " ".join(f"word{n}" for n in range(60))
    said = says(scripted, "long", words, "Hm. " * 5, gate=threading.Event())
    assert said.gate is not None
    page.ask("Say a long one")
    page.until(lambda: "word" in page.answer())
    page.type(Keys.ESCAPE)
    page.until(lambda: "Stopped." in page.one(".ended").text)
    said.gate.set()
    part = page.answer()
    assert part and part != words and words.startswith(part)
    page.until(lambda: engine_of(scripted).n_cancelled == 1)
    said.gate = None
    page.click(".ended span + button")
    page.until(lambda: page.answer() == words)
    page.ended()
    assert "<think>" in engine_of(scripted).script.prompts[-1] and not page.one(".ended").is_displayed()
    says(scripted, "long", "short")
    page.click(".answer [aria-label='Answer again']")
    page.until(lambda: page.answer() == "short")
    page.ended()
    assert "2 of 2" in page.one(".answer .which").text
    page.click("[aria-label='The version before']")
    page.until(lambda: page.answer() == words)


def test_edit_and_branch(page: Any, scripted: Serving) -> None:
    says(scripted, "first", "one")
    says(scripted, "second", "two")
    says(scripted, "third", "three")
    page.ask("The first question")
    page.ended()
    page.ask("And the second")
    page.until(lambda: len(page.all(".answer")) == 2 and page.answer() == "two")
    page.click(".question [aria-label=Edit]")
    area = page.one(".question textarea")
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys("The third", Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.answer() == "three")
    page.ended()
    assert [each.text for each in page.all(".question .words")] == ["The first question", "The third"]
    page.click(".question [aria-label='The version before']")
    page.until(lambda: page.answer() == "two")
    page.type(Keys.ESCAPE)
    page.do("document.getElementById('question').focus()")
    page.type(Keys.ARROW_UP)
    assert page.one(".question textarea").get_attribute("value") == "And the second"
    page.type(Keys.ESCAPE)
    assert not page.all(".question textarea")


def test_a_hostile_answer_is_only_text(page: Any, scripted: Serving) -> None:
    says(scripted, "hostile", HOSTILE, HOSTILE)
    page.ask("<img src=x onerror='window.broken=1'> hostile")
    page.ended()
    page.click(".thought summary")
    page.until(lambda: page.all(".thought table"))
    assert page.do("return window.broken") is None
    assert not page.all(".answer script, .answer img, .answer style, .answer [onerror], .question .words *")
    links = [each.get_attribute("href") for each in page.all(".answer > .text a")]
    assert links == ["https://c.example/c.png"]
    paragraph = next(each for each in page.all(".answer > .text p") if "שלום" in each.text)
    assert page.do("return getComputedStyle(arguments[0]).direction", paragraph) == "rtl"
    assert page.do("return document.documentElement.scrollWidth <= innerWidth")
    table = page.one(".answer > .text .table")
    assert page.do("return arguments[0].scrollWidth > arguments[0].clientWidth", table)
    page.look(390, 844)
    page.driver.refresh()
    page.until(lambda: page.all(".answer > .text table"))
    assert page.do("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert page.do("const m = document.querySelector('main'); return m.scrollWidth <= m.clientWidth")
    page.picture("hostile-390-light")


def test_a_reload_loses_nothing(page: Any, scripted: Serving) -> None:
    gate = threading.Event()
    said = says(scripted, "story", "Once upon a time. " * 30, "Let me think. " * 3, gate=gate)
    page.one("#question").send_keys("half a quest")
    page.driver.refresh()
    page.until(lambda: page.one("#question").get_attribute("value") == "half a quest")
    page.one("#question").clear()
    page.ask("Tell a story")
    page.until(lambda: "Once upon" in page.answer())
    page.one("#question").send_keys("typed meanwhile")
    before = page.until(lambda: page.answer())
    page.driver.refresh()
    page.until(lambda: "closed while" in page.one(".ended").text)
    gate.set()
    assert page.answer().startswith(before) and page.one("#question").get_attribute("value") == "typed meanwhile"
    assert "Thought" in page.one(".thought summary").text
    said.gate = None
    page.click(".ended span + button")
    page.until(lambda: page.answer() == said.text.strip())
    page.driver.refresh()
    page.until(lambda: page.all(".answer .block") and page.answer() == said.text.strip())


def test_a_lost_connection_loses_nothing(page: Any, scripted: Serving) -> None:
    words = ("Once upon a time. " * 30).strip()
    gate = threading.Event()
    said = says(scripted, "story", words, gate=gate)
    with cable(scripted.settings.port) as line:
        page.open(line.url)
        page.ask("Tell a story")
        page.until(lambda: "Once upon" in page.answer())
        line.cut()
        page.until(lambda: "connection was lost" in page.one(".ended").text)
        page.until(lambda: page.one("#lost").is_displayed())
        part = page.answer()
        page.one("#question").send_keys("still here")
        page.picture("lost-1280-light")
        gate.set()
        said.gate = None
        line.mend()
        page.until(lambda: not page.one("#lost").is_displayed())
        assert words.startswith(part) and page.answer() == part
        assert page.one("#question").get_attribute("value") == "still here"
        page.click(".ended span + button")
        page.until(lambda: page.answer() == words)
        page.ended()
    page.faults()


def test_two_tabs(page: Any, scripted: Serving) -> None:
    says(scripted, "one", "first answer")
    says(scripted, "two", "second answer")
    says(scripted, "three", "third answer")
    page.ask("one")
    page.ended()
    address = page.driver.current_url
    before = page.new_tab(address)
    page.until(lambda: page.answer() == "first answer")
    page.ask("two")
    page.until(lambda: page.answer() == "second answer")
    page.ended()
    page.turn_to(before)
    page.until(lambda: page.answer() == "second answer")
    page.one("#question").send_keys("draft here")
    page.click("#new")
    page.until(lambda: page.one("#title").text == "New conversation")
    page.ask("three")
    page.until(lambda: page.answer() == "third answer")
    page.ended()
    titles = [each.text for each in page.all("#list a")]
    assert titles[:2] == ["three", "one"]
    page.driver.get(address)
    page.driver.refresh()
    page.until(lambda: page.all(".answer") and page.answer() == "second answer")
    assert page.one("#question").get_attribute("value") == "draft here"
    others = [handle for handle in page.driver.window_handles if handle != before]
    for handle in others:
        page.turn_to(handle)
        page.driver.close()
    page.turn_to(before)


def test_a_key_is_asked_for(browser: Any, llm: LLM) -> None:
    with serving(llm, ScriptedEngine, names=("MiMo-7B-RL-Q4_K_M",), api_keys=key_digests(["secret"], None)) as server:
        browser.look(1280, 860)
        browser.open(server.url)
        browser.until(lambda: browser.all("#asked[open]"))
        browser.picture("key-1280-light")
        browser.type("wrong", Keys.ENTER)
        browser.until(lambda: "not the key" in browser.one("#asked .wrong").text)
        browser.type("secret", Keys.ENTER)
        browser.until(lambda: not browser.all("#asked[open]"))
        browser.until(lambda: browser.one("#state").text)
        browser.ask("Hello")
        browser.until(lambda: browser.answer() == "I have nothing to say.")
        browser.driver.refresh()
        browser.until(lambda: browser.all(".answer") and not browser.all("#asked[open]"))
        browser.faults()


def test_settings_memory_and_copies(page: Any, scripted: Serving) -> None:
    says(scripted, "code", "```python\nprint(42)\n```")
    page.click("#settings-open")
    page.one("#set-temperature").send_keys("0.25")
    page.one("#set-max_tokens").send_keys("77")
    page.one("#set-system").send_keys("Be brief.")
    page.one("#set-colours").send_keys("Dark")
    assert page.do("return getComputedStyle(document.body).backgroundColor") == "rgb(24, 23, 21)"
    page.type(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog[open]"))
    page.ask("Some code")
    page.ended()
    request, prompt = engine_of(scripted).script.asked[-1], engine_of(scripted).script.prompts[-1]
    assert (
        abs(request.sampling.temperature - 0.25) < 1e-6 and request.options.max_tokens == 77 and "Be brief." in prompt
    )
    assert "longest length" in page.one(".ended").text
    page.do("window.copied = []; navigator.clipboard.writeText = async (text) => { window.copied.push(text); }")
    page.click("[data-copy]")
    page.click(".answer .acts [aria-label=Copy]")
    page.until(lambda: page.do("return window.copied") == ["print(42)\n", "```python\nprint(42)\n```"])
    page.click("#memory-open")
    page.until(lambda: page.all("#memory[open] .bar span"))
    told = page.one("#memory").text
    assert "weights" in told and "KV cache" in told and "free" in told and "4 conversations at a time" in told
    page.type(Keys.ESCAPE)
    page.do("localStorage.removeItem('mimo.settings')")


def test_names_files_and_deleting(page: Any, scripted: Serving) -> None:
    says(scripted, "file", "An **answer**.", "A thought.")
    page.ask("For a file")
    page.ended()

    def choose(what: str) -> None:
        page.click("#more-open")
        page.click(f"#more [data-do={what}]")

    choose("rename")
    page.chord(Keys.CONTROL, "a")
    page.type("Another name", Keys.ENTER)
    page.until(lambda: page.one("#title").text == "Another name")
    choose("markdown")
    choose("json")
    saved = [page.downloads / f"Another-name.{ending}" for ending in ("json", "md")]
    page.until(lambda: all(file.exists() for file in saved))
    document, text = json.loads(saved[0].read_text()), saved[1].read_text()
    assert (
        text.startswith("# Another name\n\n## You\n\nFor a file\n\n")
        and "An **answer**." in text
        and "A thought." in text
    )
    assert [each["role"] for each in document["messages"]] == ["user", "assistant"]
    page.one("#import").send_keys(str(saved[0]))
    page.until(lambda: [each.text for each in page.all("#list a")].count("Another name") == 2)
    assert page.answer() == "An answer."
    for left in (1, 0):
        if left == 0:
            page.click("#list li a")
            page.until(lambda: page.one("#title").text == "Another name")
        choose("delete")
        page.click("#asked .filled")
        page.until(lambda left=left: [each.text for each in page.all("#list a")].count("Another name") == left)


def test_the_keyboard_alone(page: Any, scripted: Serving) -> None:
    says(scripted, "keys", "An answer.")
    page.do("document.querySelector('.skip').focus()")
    address = page.driver.current_url
    page.type(Keys.ENTER, "keys")
    page.chord(Keys.SHIFT, Keys.ENTER)
    page.type("and more")
    assert page.driver.current_url == address and page.one("#question").get_attribute("value") == "keys\nand more"
    page.type(Keys.ENTER)
    page.ended()
    page.do("document.getElementById('new').focus()")
    page.type("/")
    assert page.do("return document.activeElement.id") == "question" and not page.one("#question").get_attribute(
        "value"
    )
    seen: set[str] = set()
    for _ in range(40):
        page.type(Keys.TAB)
        seen.add(page.do("const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.tagName"))
    assert {"new", "memory-open", "settings-open", "more-open", "question", "Edit", "Answer again"} <= seen
    page.do("document.getElementById('question').focus()")
    page.chord(Keys.ALT, "n")
    page.until(lambda: page.one("#title").text == "New conversation")


@pytest.mark.parametrize(("width", "height"), [(1280, 860), (390, 844)])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, scripted: Serving, width: int, height: int, dark: bool) -> None:
    axe_module = pytest.importorskip("selenium_axe_python", reason="selenium-axe-python is not installed")
    says(scripted, "quadratic", MATHS, "I think.")
    name = f"{width}-{'dark' if dark else 'light'}"
    page.look(width, height, dark=dark)
    page.open(scripted.url)
    page.picture(f"empty-{name}")

    def check(where: str) -> None:
        axe = axe_module.Axe(page.driver)
        axe.inject()
        found = [each for each in axe.run()["violations"] if each["impact"] != "minor"]
        bad = [each for each in found if each["id"] != "heading-order"]  # the model's headings are as it wrote them
        assert not bad, f"{where}: {json.dumps(bad, indent=1)[:3000]}"

    check("empty")
    page.ask("Derive the quadratic formula.")
    page.ended()
    assert page.do("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    page.do("document.getElementById('scroll').scrollTop = 0")
    page.picture(f"answer-{name}")
    check("answer")
    page.do("document.getElementById('scroll').scrollTop = 1e6")
    page.picture(f"answer-end-{name}")
    for opener in ("settings", "memory"):
        page.click(f"#{opener}-open")
        page.until(lambda opener=opener: page.all(f"#{opener}[open] .filled"))
        page.picture(f"{opener}-{name}")
        check(opener)
        page.type(Keys.ESCAPE)
        page.until(lambda: not page.all("dialog[open]"))
    if width < 600:
        page.click("#side-open")
        page.until(lambda: page.all("#side.open"))
        page.picture(f"list-{name}")
        check("list")
        page.type(Keys.ESCAPE)


def test_a_restarted_server_goes_on(browser: Any, llm: LLM, tmp_path: Path) -> None:
    """The page waits for a server that has stopped, and asks it once it is there."""
    browser.look(1280, 860)
    with serving(llm, ScriptedEngine, names=("MiMo",)) as server:
        port = server.settings.port
        browser.open(server.url)
        browser.ask("before")
        browser.ended()
    browser.ask("after")
    browser.until(lambda: "connection" in browser.all(".ended")[-1].text or "reached" in browser.all(".ended")[-1].text)
    browser.until(lambda: browser.one("#lost").is_displayed())
    with serving(llm, ScriptedEngine, names=("MiMo",), port=port):
        browser.until(lambda: not browser.one("#lost").is_displayed())
        browser.click(".ended span + button")
        browser.until(lambda: not browser.runs and browser.answer() == "I have nothing to say.")
        browser.faults()


def test_several_models_are_a_choice(browser: Any, llm: LLM) -> None:
    names = ("first-model", "second-model")
    models = Models([Served((name, f"alias-of-{name}"), Loaded(llm)) for name in names], Limits())
    for served in models.all:
        models.put(served, llm, ScriptedEngine)
        assert isinstance(served.engine, ScriptedEngine)
        served.engine.script.answers["who"] = Said(f"I am the {served.names[0]}.")
    browser.look(1280, 860)
    with serving_models(models, Settings(port=0)) as server:
        browser.open(server.url)
        browser.until(lambda: browser.one("#model").is_displayed())
        choices = [each.text for each in browser.all("#model option")]
        assert set(names) <= set(choices) and "alias-of-first-model" not in choices
        for name in names:
            browser.one("#model").send_keys(name)
            browser.ask(f"who are you, {name}?")
            browser.until(lambda name=name: browser.answer() == f"I am the {name}.")
            browser.ended()
        assert [each.text.split(" · ")[0] for each in browser.all(".meta")] == list(names)
        browser.picture("models-1280-light")
        browser.driver.refresh()
        browser.until(lambda: browser.one("#model").get_attribute("value") == "second-model")
        browser.do("localStorage.clear()")
    browser.faults()
