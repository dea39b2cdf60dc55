// A conversation as a tree: each message has a parent, and an edited question or a new answer is a sibling. Pure functions.

/** The children of a message (of none: the first questions), the oldest first. */
export const children = (messages, parent) => messages.filter((message) => (message.parent ?? null) === parent);

/** The messages from the first one to `leaf`. */
export function path(messages, leaf) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const found = [];
  for (let at = byId.get(leaf); at && found.length <= messages.length; at = byId.get(at.parent)) found.unshift(at);
  return found;
}

/** The newest message below `id`, or below the top. */
export function newest(messages, id = null) {
  let at = id;
  for (;;) {
    const next = children(messages, at).at(-1);
    if (!next) return at;
    at = next.id;
  }
}

/** The leaf that is shown: the chosen one, or the newest. */
export const shownLeaf = (messages, chosen) => (messages.some((message) => message.id === chosen) ? chosen : newest(messages));

/** The messages that stand in the same place, and which of them this is. */
export function siblings(messages, message) {
  const all = children(messages, message.parent ?? null);
  return { all, place: all.findIndex((each) => each.id === message.id) };
}

/** A title of the first words of a question. */
export function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > 90 ? `${line.slice(0, 87).trimEnd()}…` : line || "New conversation";
}

/** What the model is sent: the questions and answers, without earlier thinking, after the system message. */
export function asPrompt(messages, system) {
  const said = messages
    .filter((message) => message.role === "user" || message.text)
    .map(({ role, text }) => ({ role, content: text }));
  return system ? [{ role: "system", content: system }, ...said] : said;
}

/** An answer that was broken off, as the model wrote it, so that it can go on. */
export const begun = ({ thinking, text }) => (thinking ? `<think>\n${thinking}${text ? `\n</think>\n\n${text}` : ""}` : text);
