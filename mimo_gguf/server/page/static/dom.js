// Makes elements, and changes those that are there as little as possible.

/** Makes an element: `make("button", {class: "icon", onclick: f}, "text", child)`. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SHAPES = {
  copy: ["M7 7V4.500A1 1 0 0 1 8 3.500h7a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1h-2.500", "M4 7.500h7a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1v-7a1 1 0 0 1 1-1z"],
  again: ["M15.500 10a5.500 5.500 0 1 1-1.600-3.900L16 8", "M16 4v4h-4"],
  edit: ["M4 16l.700-3.200L13 4.500a1.200 1.200 0 0 1 1.700 0l.800.800a1.200 1.200 0 0 1 0 1.700L7.200 15.300z"],
  before: ["M12 5l-5 5 5 5"],
  after: ["M8 5l5 5-5 5"],
  done: ["M4.500 10.500l3.500 3.500 7.500-8"],
};

/** An icon of lines. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  for (const shape of SHAPES[name]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", shape);
    svg.append(path);
  }
  return svg;
}

/** A button with an icon alone; `label` says what it does. */
export function iconButton(name, label, onclick, more = {}) {
  return make("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...more }, icon(name));
}

/** Shows blocks of HTML, which the server has made safe, from the place `start` on. Those before stay as they are. */
export function showBlocks(root, start, blocks) {
  blocks.forEach((html, index) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    const there = root.children[start + index];
    if (there) fit(there, template.content);
    else {
      const block = make("div", { class: "block" });
      block.append(template.content);
      root.append(block);
    }
  });
  while (root.children.length > start + blocks.length) root.lastElementChild.remove();
}

/** Makes the children of `old` like those of `wanted`. What is alike stays: its selection, its focus, its scroll. */
function fit(old, wanted) {
  const news = [...wanted.childNodes];
  news.forEach((node, index) => {
    const there = old.childNodes[index];
    if (!there) old.append(node);
    else if (there.isEqualNode(node)) return;
    else if (there.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) growText(there, node.data);
    else if (there.nodeName === node.nodeName && there.nodeType === Node.ELEMENT_NODE && sameAttributes(there, node)) fit(there, node);
    else there.replaceWith(node);
  });
  while (old.childNodes.length > news.length) old.lastChild.remove();
}

function growText(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function sameAttributes(one, other) {
  return one.attributes.length === other.attributes.length && [...one.attributes].every(({ name, value }) => other.getAttribute(name) === value);
}

const GROUPED = new Intl.NumberFormat("en");

/** A whole number, in groups of three digits. */
export const count = (n) => GROUPED.format(n);

/** Bytes as people read them. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (bytes >= 1024 && place < units.length - 1) [bytes, place] = [bytes / 1024, place + 1];
  return `${bytes.toFixed(place === 0 ? 0 : bytes < 10 ? 2 : bytes < 100 ? 1 : 0)} ${units[place]}`;
}

/** Tells those who listen, not look. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** Puts a text into the clipboard, also if the page came over plain HTTP from another machine. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = make("textarea", { class: "hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** A number that nobody else has. */
export function fresh() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
