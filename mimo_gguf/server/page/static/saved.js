// Conversations as files: Markdown to read, JSON to open again.

import { fresh, make } from "./dom.js";
import { path, shownLeaf } from "./tree.js";

const FORM = "mimo-gguf page conversation 1";

function give(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";

/** The shown branch of a conversation as Markdown. */
export function asMarkdown({ title, leaf }, messages) {
  const parts = [`# ${title}`];
  for (const { role, text, thinking, thought, model } of path(messages, shownLeaf(messages, leaf))) {
    parts.push(role === "user" ? "## You" : `## ${model ?? "Answer"}`);
    if (thinking) parts.push(`<details><summary>Thought, ${thought ?? "?"} tokens</summary>\n\n${thinking.trim()}\n\n</details>`);
    parts.push(text.trim());
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

/** Saves the shown branch as Markdown. */
export const saveMarkdown = (conversation, messages) => give(`${fileName(conversation.title)}.md`, "text/markdown", asMarkdown(conversation, messages));

/** Saves the whole conversation, all branches, as JSON. */
export const saveJson = (conversation, messages) => give(`${fileName(conversation.title)}.json`, "application/json", `${JSON.stringify({ form: FORM, conversation, messages }, null, 2)}\n`);

/** The conversation and messages of a saved file, with new ids, so that nothing is overwritten. Throws if it is none. */
export function read(text) {
  const { form, conversation, messages } = JSON.parse(text);
  if (form !== FORM || !Array.isArray(messages)) throw new Error("This is not a conversation that this page saved.");
  const ids = new Map(messages.map(({ id }) => [id, fresh()]));
  const id = fresh();
  const words = (value) => (typeof value === "string" ? value : "");
  const whole = (value) => (Number.isFinite(value) ? value : undefined);
  return {
    conversation: { id, title: words(conversation?.title) || "Conversation", created: Date.now(), changed: Date.now(), leaf: ids.get(conversation?.leaf) ?? null },
    messages: messages.map((message, place) => ({
      id: ids.get(message.id), conversation: id, parent: ids.get(message.parent) ?? null, role: message.role === "user" ? "user" : "assistant",
      text: words(message.text), thinking: words(message.thinking), created: whole(message.created) ?? place, state: message.state === "runs" ? "cut" : words(message.state),
      model: words(message.model) || undefined, tokens: whole(message.tokens), thought: whole(message.thought), rate: whole(message.rate), used: whole(message.used), window: whole(message.window), acceptance: whole(message.acceptance),
    })),
  };
}
