// Small dialogs: a key, a name, whether to delete, and what the keyboard does.

import { make } from "./dom.js";
import { ask, Failure, useKey } from "./server.js";

const dialog = () => document.getElementById("asked");

function open(form, { mayClose = true } = {}) {
  const place = dialog();
  place.replaceChildren(form);
  place.oncancel = mayClose ? null : (event) => event.preventDefault();
  if (!place.open) place.showModal();
  return new Promise((resolve) => { place.onclose = () => resolve(place.returnValue); });
}

const buttons = (...all) => make("div", { class: "buttons" }, ...all);
const cancel = () => make("button", { type: "button", class: "plain", onclick: () => dialog().close("") }, "Cancel");

/** Asks for a new name; null if it stays. */
export async function askName(now) {
  const field = make("input", { class: "field", value: now, "aria-label": "Name", maxlength: 200 });
  const done = await open(make("form", { method: "dialog" }, make("h2", { id: "asked-title" }, "Rename"), field, buttons(cancel(), make("button", { type: "submit", class: "filled", value: "done" }, "Rename"))));
  return done === "done" && field.value.trim() ? field.value.trim() : null;
}

/** Asks whether to delete. */
export async function askDelete(title) {
  const done = await open(make("form", { method: "dialog" }, make("h2", { id: "asked-title" }, "Delete this conversation?"), make("p", {}, `“${title}” is in this browser only, and cannot be brought back.`), buttons(cancel(), make("button", { type: "submit", class: "filled", value: "done" }, "Delete"))));
  return done === "done";
}

/** Says something that needs no answer. */
export async function tell(title, ...words) {
  await open(make("form", { method: "dialog" }, make("h2", { id: "asked-title" }, title), ...words, buttons(make("button", { type: "submit", class: "filled", value: "done" }, "Done"))));
}

const KEYS = [["Enter", "send"], ["Shift Enter", "a new line"], ["Esc", "stop the answer; close what is open"], ["↑", "in an empty field: edit the last question"], ["/", "to the question"], ["Alt N", "a new conversation"], ["Ctrl Enter", "while editing: ask this"]];

/** Shows what the keyboard does. */
export const showKeys = () => tell("Keys", make("dl", { class: "keys" }, ...KEYS.flatMap(([keys, what]) => [make("dt", {}, ...keys.split(" ").flatMap((key, place) => [...(place ? [" "] : []), make("kbd", {}, key)])), make("dd", {}, what)])));

let asking = null;

/** Asks for the key of the server until it is right. Several callers share one dialog. */
export function askKey() {
  asking ??= untilRight().finally(() => { asking = null; });
  return asking;
}

async function untilRight() {
  const field = make("input", { class: "field", type: "password", "aria-label": "Key", autocomplete: "current-password", required: true });
  const stays = make("input", { type: "checkbox", id: "key-stays" });
  const wrong = make("p", { class: "wrong", role: "alert" });
  const form = make("form", {}, make("h2", { id: "asked-title" }, "This server asks for a key"),
    make("p", {}, "It is the one that the server was started with."), make("div", { class: "row tall bare" }, field),
    make("div", { class: "row" }, make("label", { for: "key-stays" }, "Keep it in this browser", make("small", {}, "Otherwise it is forgotten with this tab.")), stays), wrong,
    buttons(make("button", { type: "submit", class: "filled" }, "Go on")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    try {
      useKey(field.value.trim(), stays.checked);
      await ask("v1/models");
      dialog().close("done");
    } catch (error) {
      wrong.textContent = error instanceof Failure && error.status === 401 ? "That is not the key." : error.message;
      field.select();
    }
  });
  await open(form, { mayClose: false });
}
