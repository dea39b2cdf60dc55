// What the server serves: names, window, drafts, plan; and how that is told where nothing has been said yet.

import { count, make } from "./dom.js";
import { ask } from "./server.js";
import { kept } from "./store.js";

const EXAMPLES = [
  ["Mathematics", "Prove that the square root of 2 is irrational."],
  ["Code", "Write a Python function that merges overlapping intervals, with tests."],
  ["Comparing", "Compare quicksort, mergesort and heapsort in a table."],
  ["Thinking", "A snail climbs 3 m a day and slips 2 m each night. When is it out of a 10 m well?"],
];

/** What the server has told; null until it has. */
export let props = null;
let names = [];

/** Asks the server what it serves. A model that is not loaded yet is not loaded for that. Throws what `ask` throws. */
export async function look() {
  const { data } = await ask("v1/models");
  names = data.map(({ id }) => id);
  const isLoaded = data.find(({ id }) => id === chosen())?.loaded !== false;
  props = isLoaded ? await ask(`props?model=${encodeURIComponent(chosen())}`) : null;
  const aliases = new Set(props?.model_names?.slice(1) ?? []);
  names = names.filter((name) => !aliases.has(name));
  const choice = document.getElementById("model");
  choice.replaceChildren(...names.map((name) => make("option", { value: name, selected: name === chosen() }, name)));
  choice.hidden = names.length < 2;
}

/** The model that is asked. */
export function chosen() {
  const wanted = kept("model");
  return names.includes(wanted) ? wanted : names[0] ?? null;
}

/** Calls `changed` when another model is chosen. */
export function onChoice(changed) {
  document.getElementById("model").addEventListener("change", (event) => {
    kept("model", event.target.value);
    changed();
  });
}

/** Says what the model is and what it can do. */
export function showEmpty(section, onExample) {
  const place = props?.plan?.devices?.at(-1);
  const where = place ? (place.kind === "cpu" ? "processor" : place.description || place.name) : null;
  section.replaceChildren(
    make("h2", {}, chosen() ?? "MiMo"),
    make("p", {}, "A language model that thinks before it answers, and is best at mathematics and code. It reads and writes text; it sees no pictures and no web."),
    make("ul", {}, ...EXAMPLES.map(([kind, text]) => make("li", {}, make("button", { type: "button", onclick: () => onExample(text) }, make("small", {}, kind), text)))),
    make("p", { class: "facts" }, facts(where)),
  );
}

function facts(where) {
  if (!props) return "";
  const found = [`It keeps ${count(props.n_ctx)} tokens in mind, about ${count(Math.round((props.n_ctx * 0.7) / 100) * 100)} words.`];
  if (props.mtp) found.push(props.n_draft > 1 ? `It drafts ${props.n_draft} tokens at a time.` : "It drafts with its MTP layer.");
  found.push(where ? `It runs on the server's ${where}; nothing is sent to anyone else.` : "Nothing is sent to anyone but this server.");
  return found.join(" ");
}
