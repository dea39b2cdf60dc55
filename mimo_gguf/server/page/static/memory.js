// Draws the memory plan: for each device a bar of what is where and what is free, and the same as a table.

import { count, make, size } from "./dom.js";

/** Opens the panel. `props` is the server's `/props`. */
export function openMemory(dialog, props) {
  const plan = props?.plan;
  const form = make("form", { method: "dialog" }, make("h2", { id: "memory-title", tabindex: -1, autofocus: true }, "Memory"),
    ...(plan ? [make("p", {}, summary(plan, props)), ...plan.devices.map(device)] : [make("p", {}, "The server tells no plan.")]),
    make("div", { class: "buttons" }, make("button", { type: "submit", class: "filled" }, "Done")));
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
}

function summary({ settings }, { total_slots: slots, n_ctx: window }) {
  const gpu = settings.n_gpu_layers > 0 ? `${Math.min(settings.n_gpu_layers, settings.n_layers)} of ${settings.n_layers} layers on the GPU` : "all layers on the CPU";
  const kv = settings.type_k === settings.type_v ? settings.type_k : `${settings.type_k}/${settings.type_v}`;
  const cards = slots === 1 ? "One conversation" : `${count(slots)} conversations at a time`;
  return `${cards}, each with a window of ${count(window)} tokens; KV cache in ${kv}; ${gpu}${settings.mtp ? "; with the MTP layer" : ""}.`;
}

function device({ name, description, total_bytes: total, free_bytes: free, needed_bytes: needed, tree }) {
  const parts = tree.parts ?? [];
  const used = Math.max(total - free, 0);
  const left = Math.max(free - needed, 0);
  const shown = [
    ...(used ? [{ name: "used by others", bytes: used, key: "k-used" }] : []),
    ...parts.map((part, place) => ({ ...part, key: `k-${Math.min(place + 1, 6)}` })),
    { name: "free", bytes: left, key: "k-free" },
  ];
  const whole = shown.reduce((sum, { bytes }) => sum + bytes, 0) || 1;
  const bar = make("div", { class: "bar", "aria-hidden": "true" }, ...shown.filter(({ bytes }) => bytes).map(({ bytes, key, name: what }) => {
    const piece = make("span", { class: key, title: `${what}: ${size(bytes)}` });
    piece.style.width = `${(100 * bytes) / whole}%`;
    return piece;
  }));
  const line = (part, key) => make("tr", key ? {} : { class: "part" }, make("td", {}, ...(key ? [make("i", { class: key })] : []), part.name), make("td", {}, size(part.bytes)));
  const rows = shown.flatMap((part) => [line(part, part.key), ...(part.parts ?? []).map((inner) => line(inner))]);
  return make("section", { class: "device" }, make("h3", {}, description && description !== name ? `${name}, ${description}` : name),
    make("p", {}, `${size(needed)} of ${size(total)} for this model`), bar, make("table", {}, make("tbody", {}, ...rows)));
}
