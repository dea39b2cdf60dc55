// How answers are drawn: the fields, their dialog, and what of them a request says.

import { make } from "./dom.js";
import { kept } from "./store.js";

const EFFORTS = [["", "No limit"], ["medium", "8,192 tokens"], ["low", "1,024 tokens"], ["minimal", "256 tokens"], ["none", "None"]];
const COLOURS = [["", "As the system"], ["light", "Light"], ["dark", "Dark"]];
const NUMBERS = [
  ["temperature", "Temperature", "0 always takes the likeliest token; higher is freer.", { min: 0, max: 2, step: 0.05 }],
  ["top_p", "Top p", "Draws from the likeliest tokens that have this share together.", { min: 0, max: 1, step: 0.01 }],
  ["top_k", "Top k", "Draws from so many likeliest tokens; 0 from all.", { min: 0, step: 1 }],
  ["min_p", "Min p", "Leaves out what is less likely than this share of the likeliest.", { min: 0, max: 1, step: 0.01 }],
  ["max_tokens", "Longest answer", "In tokens, thinking included.", { min: 1, step: 1 }],
  ["seed", "Seed", "The same seed draws the same answer again.", { min: 0, step: 1 }],
];

/** The settings of this browser. */
export const settings = () => kept("settings") ?? {};

/** Gives the page the colours that are wished for. */
export function colour() {
  const { colours } = settings();
  if (colours) document.documentElement.dataset.colours = colours;
  else delete document.documentElement.dataset.colours;
}

/** The fields of a request that they mean. */
export function asFields({ system, colours, mtp, ...given } = settings()) {
  const fields = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== "" && value !== null));
  if (mtp === false) fields.mtp = false;
  return fields;
}

/** Opens the dialog. `defaults` are the server's. */
export function openSettings(dialog, { defaults = {}, drafts = false }) {
  const now = settings();
  const row = (label, help, field, tall = false) => {
    field.id = `set-${field.name}`;
    return make("div", { class: tall ? "row tall" : "row" }, make("label", { for: field.id }, label, make("small", {}, help)), field);
  };
  const choice = (name, choices) => make("select", { name }, ...choices.map(([value, text]) => make("option", { value, selected: value === (now[name] ?? "") }, text)));
  const system = make("textarea", { name: "system", placeholder: "You are a helpful assistant.", dir: "auto" });
  system.value = now.system ?? "";
  const numbers = NUMBERS.map(([name, label, help, range]) => {
    const placeholder = name === "max_tokens" ? "what fits" : name === "seed" ? "random" : String(defaults[name] ?? (name === "min_p" ? 0 : ""));
    return row(label, help, make("input", { type: "number", name, value: now[name] ?? "", placeholder, inputmode: "decimal", ...range }));
  });
  const mtp = make("input", { type: "checkbox", name: "mtp", checked: now.mtp !== false });
  const form = make("form", { method: "dialog" },
    make("h2", { id: "settings-title", tabindex: -1, autofocus: true }, "Settings"),
    row("System message", "What the model is told before each conversation.", system, true),
    row("Thinking", "How long it may think before it answers.", choice("reasoning_effort", EFFORTS)),
    ...numbers,
    ...(drafts ? [row("Drafts", "The MTP layer drafts tokens. It changes the speed, not the text.", mtp)] : []),
    row("Colours", "Of this page.", choice("colours", COLOURS)),
    make("div", { class: "buttons" },
      make("button", { type: "button", class: "plain", onclick: () => { kept("settings", {}); colour(); openSettings(dialog, { defaults, drafts }); } }, "Back to the model's own"),
      make("button", { type: "submit", class: "filled", value: "done" }, "Done")),
  );
  form.addEventListener("input", () => { kept("settings", read(form)); colour(); });
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
}

function read(form) {
  const found = { system: form.elements.system.value.trim(), reasoning_effort: form.elements.reasoning_effort.value, colours: form.elements.colours.value };
  for (const [name] of NUMBERS) {
    const field = form.elements[name];
    if (field.value !== "" && field.validity.valid) found[name] = Number(field.value);
  }
  if (form.elements.mtp && !form.elements.mtp.checked) found.mtp = false;
  return found;
}
