// The page: which conversation is shown, what is asked, and what the keyboard and buttons do.

import { askDelete, askKey, askName, showKeys, tell } from "./asked.js";
import { count, fresh, make, say } from "./dom.js";
import { openMemory } from "./memory.js";
import { chosen, look, onChoice, props, showEmpty } from "./model.js";
import { adopt, Run, runs, SILENT } from "./run.js";
import { read, saveJson, saveMarkdown } from "./saved.js";
import { isThere } from "./server.js";
import { asFields, colour, openSettings, settings } from "./settings.js";
import { openSide, showList } from "./side.js";
import * as store from "./store.js";
import { speed, Thread } from "./thread.js";
import { asPrompt, begun, children, newest, path, shownLeaf, titleOf } from "./tree.js";

const by = (id) => document.getElementById(id);
const question = by("question");
const scroll = by("scroll");
const touch = matchMedia("(hover: none) and (pointer: coarse)");
const fresh0 = () => ({ id: fresh(), title: "New conversation", leaf: null, isNew: true });
let conversation = fresh0();
let messages = [];
const thread = new Thread(by("thread"), { again, resume, edit, turnTo });

// ---- which conversation is shown

let visits = 0;

async function go(id) {
  const visit = ++visits;
  const [all, found] = await Promise.all([store.messages(id), store.conversations()]);
  if (visit !== visits) return; // another one was chosen meanwhile
  conversation = found.find((each) => each.id === id) ?? { ...fresh0(), id };
  adopt(all);
  messages = all.map((message) => runs.get(message.id)?.message ?? message);
  if (location.hash !== `#${id}`) history.replaceState(null, "", `#${id}`);
  question.value = store.draft(id);
  grow();
  openSide(false);
  by("thread").replaceChildren();
  thread.views.clear();
  show();
  scroll.scrollTop = scroll.scrollHeight;
  showList(id);
}

/** Shows the conversation as it is. */
function show() {
  const shown = path(messages, leaf());
  by("title").textContent = conversation.title;
  document.title = conversation.isNew ? "MiMo" : `${conversation.title} · MiMo`;
  by("empty").hidden = shown.length > 0;
  if (!shown.length) showEmpty(by("empty"), (text) => { question.value = text; typed(); question.focus(); });
  thread.show(shown, messages);
  showLine();
}

const leaf = () => shownLeaf(messages, conversation.leaf);

function start() {
  const { hash } = location;
  go(hash.length > 1 ? hash.slice(1) : fresh());
}

function begin() {
  history.pushState(null, "", location.pathname);
  go(fresh()).then(() => { if (!touch.matches) question.focus(); });
}

// ---- asking

async function send() {
  const text = question.value.trim();
  if (!text || current()) return;
  question.value = "";
  store.draft(conversation.id, "");
  grow();
  await put({ role: "user", text, parent: leaf() });
  await answer(leaf());
}

/** Adds a message below its parent, and shows it. */
async function put(fields) {
  const message = { id: fresh(), conversation: conversation.id, created: Math.max(Date.now(), (messages.at(-1)?.created ?? 0) + 1), parent: null, text: "", thinking: "", ...fields };
  messages.push(message);
  const first = conversation.isNew ? { title: titleOf(message.text), created: message.created } : {};
  await choose(message.id, { ...first, changed: message.created });
  await store.changeMessage(message, message);
  show();
  toEnd();
  showList(conversation.id);
  return message;
}

async function choose(id, more = {}) {
  conversation = { ...conversation, ...more, leaf: id, isNew: false };
  const { isNew, id: own, ...fields } = conversation;
  await store.changeConversation(own, { ...more, leaf: id, title: fields.title });
}

/** Lets the model answer the question `parent`. */
async function answer(parent) {
  const message = await put({ role: "assistant", parent, state: "runs", model: chosen() });
  await run(message, { messages: asPrompt(path(messages, parent), settings().system) });
}

async function again(message) {
  if (!current()) await answer(message.parent);
}

/** Lets an answer go on that was broken off. */
async function resume(message) {
  if (current()) return;
  const before = asPrompt(path(messages, message.parent), settings().system);
  await run(message, { messages: [...before, { role: "assistant", content: begun(message) }], continue_final_message: true, add_generation_prompt: false });
}

async function edit(message, text) {
  const now = current();
  if (now) now.stop();
  await put({ role: "user", text, parent: message.parent ?? null });
  await answer(leaf());
}

async function turnTo(message) {
  await choose(newest(messages, message.id));
  show();
}

async function run(message, request) {
  const body = { model: chosen() ?? undefined, ...asFields(), ...request };
  const started = new Run(message, body, hear);
  say("The question was sent.");
  showLine();
  await started.go();
}

/** The answer that is coming in this conversation. */
const current = () => path(messages, leaf()).map(({ id }) => runs.get(id)).find(Boolean);

/** Shows what an event of an answer has brought. */
function hear(message, event) {
  if (message.conversation !== conversation.id) return;
  const atEnd = isAtEnd();
  const before = messages.find(({ id }) => id === message.id);
  if (event?.type === "over" && message.status === 401) askKey().then(() => { again(message); });
  if (event?.type === "over" && message.state === "lost") reconnect();
  if (before) thread.update(message, event);
  if (event?.type === "over") over(message);
  if (event?.type === "over" && !props) tryLook();
  if (atEnd) toEnd();
  showLine();
}

function over(message) {
  thread.show(path(messages, leaf()), messages);
  const { state, tokens } = message;
  say(state === "done" || state === "length" ? `The answer is complete, ${count(tokens ?? 0)} tokens.` : state === "stopped" ? "Stopped." : message.error ?? "The answer was broken off.");
  store.changeConversation(conversation.id, { changed: Date.now() }, { mayMake: false });
}

// ---- the line below: speed, drafts, window

function showLine() {
  const going = current();
  by("ask").classList.toggle("runs", Boolean(going));
  by("send").setAttribute("aria-label", going ? "Stop" : "Send");
  by("send").disabled = !going && !question.value.trim();
  const last = path(messages, leaf()).findLast(({ role, used }) => role === "assistant" && used);
  by("state").textContent = speed(going?.message ?? last ?? {}) || chosen() || "";
  const window = going?.message.window ?? last?.window ?? props?.n_ctx;
  const used = (going?.message.used || last?.used) ?? 0;
  const share = window ? Math.min(used / window, 1) : 0;
  const place = by("window");
  place.classList.toggle("full", share > 0.9);
  if (!window) return place.replaceChildren();
  if (!place.children.length) place.append(make("i", { "aria-hidden": "true" }, make("b")), make("span"));
  place.querySelector("b").style.width = `${share * 100}%`;
  place.querySelector("span").textContent = `${count(used)} of ${count(window)} tokens`;
}

// ---- scrolling: it follows what is written until somebody scrolls up

const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}
scroll.addEventListener("scroll", () => { by("down").hidden = isAtEnd(); }, { passive: true });
by("down").addEventListener("click", () => { toEnd(); question.focus(); });

// ---- typing

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function typed() {
  store.draft(conversation.id, question.value);
  grow();
  showLine();
}

question.addEventListener("input", typed);
question.addEventListener("blur", () => showList(conversation.id));
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches) {
    event.preventDefault();
    send();
  }
  if (event.key === "ArrowUp" && !question.value) {
    const last = path(messages, leaf()).findLast(({ role }) => role === "user");
    if (last) { event.preventDefault(); thread.views.get(last.id)?.edit(); }
  }
});
by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const going = current();
  if (going) going.stop();
  else send();
});
addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
  if (document.querySelector("dialog[open], :popover-open")) return;
  if (event.key === "Escape") current()?.stop();
  if (event.key === "/" && !typing) { event.preventDefault(); question.focus(); }
  if (event.altKey && event.code === "KeyN") { event.preventDefault(); begin(); }
});

// ---- buttons

const acts = {
  markdown: () => saveMarkdown(conversation, messages),
  json: () => saveJson(conversation, messages),
  import: () => by("import").click(),
  keys: showKeys,
  async rename() {
    const title = await askName(conversation.title);
    if (!title) return;
    conversation = { ...conversation, title, isNew: false };
    await store.changeConversation(conversation.id, { title, ...(conversation.created ? {} : { created: Date.now(), changed: Date.now() }) });
    show();
    showList(conversation.id);
  },
  async delete() {
    if (!(await askDelete(conversation.title))) return;
    for (const { id } of messages) runs.get(id)?.stop();
    await store.remove(conversation.id);
    begin();
  },
};
by("more").addEventListener("click", (event) => {
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (!what) return;
  by("more").hidePopover();
  acts[what]();
});
by("import").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (!file) return;
  try {
    const opened = read(await file.text());
    for (const message of opened.messages) await store.changeMessage(message, message);
    await store.changeConversation(opened.conversation.id, opened.conversation);
    go(opened.conversation.id);
  } catch (error) {
    tell("It cannot be opened", make("p", {}, error instanceof SyntaxError ? "The file is not JSON." : error.message));
  }
});
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); question.focus(); });
by("new").addEventListener("click", begin);
by("settings-open").addEventListener("click", () => openSettings(by("settings"), { defaults: props?.default_generation_settings?.params, drafts: props?.mtp }));
by("memory-open").addEventListener("click", async () => { await tryLook(); openMemory(by("memory"), props); });
addEventListener("popstate", start);
addEventListener("storage", colour);
onChoice(async () => { await tryLook(); show(); });

// ---- the server, and other tabs

async function tryLook() {
  try {
    await look();
    return true;
  } catch (error) {
    if (error.status === 401) return askKey().then(tryLook);
    if (error.status === 0) reconnect();
    return false;
  }
}

let waiting = null;

/** Waits for the server, if it cannot be reached. */
function reconnect() {
  waiting ??= (async () => {
    for (let pause = 500; !(await isThere()); pause = Math.min(pause * 1.5, 5000)) {
      by("lost").hidden = false;
      await new Promise((resolve) => { setTimeout(resolve, pause); });
    }
    by("lost").hidden = true;
    waiting = null;
    say("The server is there.");
    await tryLook();
    show();
  })();
}

let soon = null;
store.onChange(({ conversation: id, gone }) => {
  clearTimeout(soon);
  soon = setTimeout(() => showList(conversation.id), 300);
  if (id !== conversation.id) return;
  if (gone) begin();
  else refresh(id);
});

let refreshing = false;

/** Shows what another tab has written to this conversation. Its branch stays the one that is shown here. */
async function refresh(id) {
  if (refreshing) return;
  refreshing = true;
  await new Promise((resolve) => { setTimeout(resolve, 250); });
  const [all, found] = await Promise.all([store.messages(id), store.conversations()]);
  refreshing = false;
  if (id !== conversation.id) return;
  const last = leaf();
  const atEnd = isAtEnd();
  messages = all.map((message) => runs.get(message.id)?.message ?? message);
  const there = found.find((each) => each.id === id);
  const grown = last ? children(messages, last).at(-1) : null;
  conversation = { ...conversation, ...(there ?? {}), isNew: !there, leaf: grown ? newest(messages, grown.id) : last ?? there?.leaf ?? null };
  show();
  if (atEnd) toEnd();
}

// An answer whose tab is gone is taken up here.
setInterval(() => {
  if (adopt(messages).length) show();
}, SILENT);

colour();
await store.open();
start();
if (await tryLook()) show();
if (!touch.matches && !document.querySelector("dialog[open]")) question.focus();
