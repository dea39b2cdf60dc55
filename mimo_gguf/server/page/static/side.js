// The list of conversations, which is a drawer in a narrow window.

import { make } from "./dom.js";
import { conversations, draft, drafts } from "./store.js";
import { titleOf } from "./tree.js";

const side = document.getElementById("side");
const shade = document.getElementById("shade");
const opener = document.getElementById("side-open");
const narrow = matchMedia("(max-width: 54rem)");
const DAY = 86_400_000;

/** Shows all conversations, and those that have only been begun to type. */
export async function showList(current) {
  const found = await conversations();
  const known = new Set(found.map(({ id }) => id));
  const typed = drafts().filter((id) => !id.startsWith("edit:") && !known.has(id)).map((id) => ({ id, title: titleOf(draft(id)), isDraft: true }));
  let label = "";
  const rows = [...typed, ...found].flatMap((each) => {
    const group = each.isDraft ? "Not sent yet" : age(each.changed);
    const head = group === label ? [] : [make("li", { class: "when" }, group)];
    label = group;
    return [...head, make("li", {}, make("a", { href: `#${each.id}`, "aria-current": each.id === current ? "page" : null, title: each.title }, each.title))];
  });
  document.getElementById("list").replaceChildren(...rows);
}

function age(changed) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (changed >= midnight) return "Today";
  if (changed >= midnight - DAY) return "Yesterday";
  return changed >= midnight - 30 * DAY ? "Last 30 days" : "Before";
}

/** Opens or closes the drawer. */
export function openSide(isOpen) {
  side.classList.toggle("open", isOpen);
  shade.hidden = !isOpen;
  opener.setAttribute("aria-expanded", isOpen);
  document.getElementById("room").inert = isOpen;
  if (isOpen) document.getElementById("new").focus();
  else if (narrow.matches && document.activeElement === document.body) opener.focus();
}

opener.addEventListener("click", () => openSide(true));
for (const element of [shade, document.getElementById("side-close")]) element.addEventListener("click", () => { openSide(false); opener.focus(); });
side.addEventListener("keydown", (event) => { if (event.key === "Escape" && side.classList.contains("open")) { openSide(false); opener.focus(); } });
narrow.addEventListener("change", () => openSide(false));
