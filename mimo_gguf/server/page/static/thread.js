// Shows the messages of a conversation, and changes only what is new in them.

import { copy, count, icon, iconButton, make, say, showBlocks } from "./dom.js";
import { runs } from "./run.js";
import { ask } from "./server.js";
import { draft } from "./store.js";
import { siblings } from "./tree.js";

const ENDINGS = {
  stopped: "Stopped.",
  cut: "The page was closed while this was written.",
  lost: "The connection was lost.",
  length: "The answer reached its longest length.",
};

export class Thread {
  /** `does` has what buttons do: again, resume, edit, turnTo. */
  constructor(root, does) {
    this.root = root;
    this.does = does;
    this.views = new Map();
    root.addEventListener("click", copyCode);
  }

  /** Shows these messages, of all that the conversation has. */
  show(path, all) {
    const wanted = path.map((message) => {
      const old = this.views.get(message.id);
      const view = old ?? (message.role === "user" ? new Question(message, this.does) : new Answer(message, this.does));
      view.update(message, siblings(all, message));
      return view;
    });
    this.views = new Map(wanted.map((view) => [view.message.id, view]));
    wanted.forEach((view, place) => {
      if (this.root.children[place] !== view.element) this.root.insertBefore(view.element, this.root.children[place] ?? null);
    });
    while (this.root.children.length > wanted.length) this.root.lastElementChild.remove();
    this.render();
  }

  /** Lets the server render the texts that are still plain. */
  async render() {
    const plain = [...this.views.values()].filter((view) => view instanceof Answer && view.isPlain && view.message.state !== "runs");
    if (!plain.length) return;
    const texts = plain.map((view) => view.message.text);
    try {
      const { blocks } = await ask("page/render", { texts });
      plain.forEach((view, place) => { if (view.message.text === texts[place]) view.showText(blocks[place]); });
    } catch { /* it stays plain until the server is there */ }
  }

  /** Shows what an event has brought to a message. */
  update(message, event) {
    this.views.get(message.id)?.update(message, null, event);
  }
}

async function copyCode(event) {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  await copy(button.closest("figure").querySelector("code").textContent);
  button.textContent = "Copied";
  say("The code was copied.");
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function copyButton(view) {
  return iconButton("copy", "Copy", async (event) => {
    await copy(view.message.text);
    const button = event.target.closest("button");
    button.replaceChildren(icon("done"));
    say("Copied.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
}

/** The arrows between siblings; nothing if there is one alone. */
function which({ all, place }, turnTo) {
  if (all.length < 2) return [];
  const to = (step) => () => turnTo(all[place + step]);
  return [make("span", { class: "which" },
    iconButton("before", "The version before", to(-1), { disabled: place === 0, class: "icon stays" }),
    make("span", {}, `${place + 1} of ${all.length}`),
    iconButton("after", "The next version", to(1), { disabled: place === all.length - 1, class: "icon stays" }),
  )];
}

class Question {
  constructor(message, does) {
    this.message = message;
    this.does = does;
    this.words = make("div", { class: "words", dir: "auto" });
    this.acts = make("div", { class: "acts" });
    this.element = make("article", { class: "turn question", "data-id": message.id, "aria-label": "You" }, make("h2", { class: "hidden" }, "You"), this.words, this.acts);
    if (draft(`edit:${message.id}`)) this.edit();
  }

  update(message, others) {
    this.message = message;
    if (this.words.textContent !== message.text) this.words.textContent = message.text;
    if (!others) return;
    const signature = `${others.place}/${others.all.length}`;
    if (this.signature === signature) return;
    this.signature = signature;
    this.acts.replaceChildren(copyButton(this), iconButton("edit", "Edit", () => this.edit()), ...which(others, this.does.turnTo));
  }

  /** Opens the question for editing. What is typed is kept. */
  edit() {
    if (this.form) return;
    const name = `edit:${this.message.id}`;
    const area = make("textarea", { "aria-label": "Your question", dir: "auto", rows: 3 });
    area.value = draft(name) || this.message.text;
    const close = () => {
      draft(name, "");
      this.form.replaceWith(this.words, this.acts);
      this.form = null;
    };
    const save = (event) => {
      event.preventDefault();
      const text = area.value.trim();
      if (!text) return;
      close();
      if (text !== this.message.text) this.does.edit(this.message, text);
    };
    area.addEventListener("input", () => draft(name, area.value));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); this.acts.querySelector("[aria-label=Edit]").focus(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(event);
    });
    this.form = make("form", { onsubmit: save }, area, make("div", { class: "buttons" },
      make("button", { type: "button", class: "plain", onclick: close }, "Cancel"),
      make("button", { type: "submit", class: "filled" }, "Ask this"),
    ));
    this.words.replaceWith(this.form);
    this.acts.remove();
    if (this.element.isConnected) area.focus();
  }
}

class Answer {
  constructor(message, does) {
    this.message = message;
    this.does = does;
    this.isPlain = true;
    this.peek = make("span", { class: "peek", "aria-hidden": "true" });
    this.label = make("b", {});
    this.thoughts = make("div", { class: "text", dir: "auto" });
    this.thought = make("details", { class: "thought", hidden: true, ontoggle: () => this.openThought() }, make("summary", {}, icon("after"), this.label, this.peek), this.thoughts);
    this.waits = make("div", { class: "waits", hidden: true });
    this.text = make("div", { class: "text" });
    this.ended = make("div", { class: "ended", hidden: true });
    this.acts = make("div", { class: "acts" });
    this.element = make("article", { class: "turn answer", "data-id": message.id, "aria-label": "Answer" }, make("h2", { class: "hidden" }, "Answer"), this.thought, this.waits, this.text, this.ended, this.acts);
  }

  update(message, others, event) {
    if (message !== this.message && message.text !== this.message.text && !event) this.isPlain = true;
    this.message = message;
    const isRunning = message.state === "runs";
    this.element.classList.toggle("runs-now", isRunning);
    this.element.classList.toggle("answered", Boolean(message.text));
    this.element.setAttribute("aria-busy", isRunning);
    if (event?.text_html) this.showText(event.text_html.slice(1), event.text_html[0]);
    else if (this.isPlain) this.showPlain();
    if (event?.thinking_html) this.showThoughts(event.thinking_html.slice(1), event.thinking_html[0]);
    this.showThought(isRunning);
    this.showWaiting(isRunning);
    if (others) this.others = others;
    this.showEnd(isRunning);
  }

  showText(blocks, start = 0) {
    if (this.isPlain) this.text.replaceChildren();
    this.isPlain = false;
    this.text.classList.remove("raw");
    showBlocks(this.text, start, blocks);
  }

  showPlain() {
    if (this.text.textContent === this.message.text) return;
    this.text.classList.add("raw");
    this.text.textContent = this.message.text;
  }

  showThoughts(blocks, start) {
    if (start === 0 && !this.hasThoughts) this.thoughts.replaceChildren();
    this.hasThoughts = true;
    showBlocks(this.thoughts, start, blocks);
  }

  /** Renders thinking that was kept, once somebody wants to read it. */
  async openThought() {
    if (!this.thought.open || this.hasThoughts) return;
    this.thoughts.textContent = this.message.thinking;
    try {
      const { blocks } = await ask("page/render", { texts: [this.message.thinking] });
      if (!this.hasThoughts) this.showThoughts(blocks[0], 0);
    } catch { /* it stays plain */ }
  }

  showThought(isRunning) {
    const { thinking, thought, text } = this.message;
    this.thought.hidden = !thinking;
    if (!thinking) return;
    const thinks = isRunning && !text;
    this.label.textContent = `${thinks ? "Thinking" : "Thought"}, ${count(thought ?? 0)} ${thought === 1 ? "token" : "tokens"}`;
    this.peek.textContent = thinks ? thinking.slice(-300).trimEnd().split("\n").at(-1).slice(-120) : "";
  }

  /** Says what happens before the first word, so that nobody looks at a dead screen. */
  showWaiting(isRunning) {
    const run = runs.get(this.message.id);
    const waits = isRunning && run && !this.message.text && !this.message.thinking;
    this.waits.hidden = !waits;
    if (!waits) return;
    const seconds = Math.floor((Date.now() - run.began) / 1000);
    const { type, waiting, read, of } = run.phase;
    let words = "Waiting for the server";
    if (type === "begin") words = waiting ? `Waiting for ${count(waiting)} other ${waiting === 1 ? "answer" : "answers"}` : "Reading the question";
    if (type === "reading") words = read < of ? `Reading the question, ${count(read)} of ${count(of)} tokens` : "Writing";
    this.line ??= this.waits.appendChild(make("span"));
    this.line.textContent = seconds >= 2 ? `${words} · ${count(seconds)} s` : words;
    this.bar ??= this.waits.appendChild(make("progress", { max: 1, "aria-label": "Reading the question" }));
    this.bar.hidden = type !== "reading";
    if (type === "reading") this.bar.value = of ? read / of : 0;
  }

  showEnd(isRunning) {
    const { message } = this;
    const signature = JSON.stringify([isRunning, message.state, message.error, message.tokens, this.others?.place, this.others?.all.length]);
    if (this.signature === signature) return;
    this.signature = signature;
    const words = message.state === "failed" ? message.error : ENDINGS[message.state];
    this.ended.hidden = isRunning || !words;
    if (!this.ended.hidden) {
      const goesOn = message.state !== "failed" && (message.text || message.thinking);
      this.ended.replaceChildren(make("span", {}, words),
        ...(goesOn ? [make("button", { type: "button", onclick: () => this.does.resume(this.message) }, "Go on")] : []),
        make("button", { type: "button", onclick: () => this.does.again(this.message) }, "Try again"));
    }
    this.acts.hidden = isRunning;
    if (isRunning) return;
    this.acts.replaceChildren(
      copyButton(this), iconButton("again", "Answer again", () => this.does.again(this.message)),
      ...(this.others ? which(this.others, this.does.turnTo) : []), make("span", { class: "meta" }, meta(message)),
    );
  }
}

/** What an answer took: its model if there are several, tokens, speed, drafts. */
function meta(message) {
  const { model, tokens } = message;
  const isOneOfSeveral = !document.getElementById("model").hidden;
  const found = [...(isOneOfSeveral && model ? [model] : []), ...(tokens ? [`${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`] : [])];
  return [...found, speed(message)].filter(Boolean).join(" · ");
}

/** How fast an answer comes, and how many drafts are right. */
export function speed({ rate, acceptance }) {
  const found = [];
  if (rate) found.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tok/s`);
  if (acceptance !== null && acceptance !== undefined) found.push(`${Math.round(acceptance * 100)} % of drafts right`);
  return found.join(" · ");
}
