// Keeps conversations in this browser. Every message is a record of its own, and a change touches only its fields, so
// that several tabs write side by side. Each tells the others what it has changed.

import { make, say } from "./dom.js";

const channel = "BroadcastChannel" in window ? new BroadcastChannel("mimo-gguf") : null;
let database = null;
const memory = { conversations: new Map(), messages: new Map() }; // if the browser keeps nothing

/** Opens the store. Without one, everything is kept until the page is closed. */
export async function open() {
  try {
    database = await new Promise((resolve, reject) => {
      const request = indexedDB.open("mimo-gguf", 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("conversations", { keyPath: "id" });
        request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    database.onversionchange = () => database.close();
  } catch {
    complain("This browser keeps no conversations here. Save yours before you close the page.");
  }
}

let complained = false;

/** Says once that something is not kept. */
function complain(text) {
  if (!complained) document.getElementById("ask").before(make("p", { class: "notice" }, text));
  if (!complained) say(text);
  complained = true;
}

function request(store, mode, work) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(store, mode);
    let result;
    work(transaction.objectStore(store), (value) => { result = value; });
    transaction.oncomplete = () => resolve(result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** All conversations, the newest first. */
export async function conversations() {
  const found = database
    ? await request("conversations", "readonly", (store, give) => { store.getAll().onsuccess = (event) => give(event.target.result); })
    : [...memory.conversations.values()];
  return found.sort((one, other) => other.changed - one.changed);
}

/** The messages of a conversation, the oldest first. */
export async function messages(id) {
  const found = database
    ? await request("messages", "readonly", (store, give) => { store.index("conversation").getAll(id).onsuccess = (event) => give(event.target.result); })
    : [...memory.messages.values()].filter((message) => message.conversation === id).map((message) => ({ ...message }));
  return found.sort((one, other) => one.created - other.created);
}

/** Changes the fields of a record that are given, or makes it; the others stay as another tab may have written them. */
async function change(store, id, fields, { mayMake = true } = {}) {
  if (database) {
    await request(store, "readwrite", (records) => {
      records.get(id).onsuccess = (event) => {
        if (event.target.result || mayMake) records.put({ ...event.target.result, id, ...fields });
      };
    }).catch(() => complain("This browser has no room left. Save this conversation as a file before you close the page."));
  } else if (memory[store].has(id) || mayMake) memory[store].set(id, { ...memory[store].get(id), id, ...fields });
}

/** Changes a conversation. */
export async function changeConversation(id, fields, how) {
  await change("conversations", id, fields, how);
  tell({ conversation: id });
}

/** Changes a message. */
export async function changeMessage(message, fields, how) {
  await change("messages", message.id, { conversation: message.conversation, ...fields }, how);
  tell({ conversation: message.conversation, message: message.id });
}

/** Removes a conversation and all its messages. */
export async function remove(id) {
  const gone = (await messages(id)).map((message) => message.id);
  if (database) {
    await request("messages", "readwrite", (store) => gone.forEach((each) => store.delete(each)));
    await request("conversations", "readwrite", (store) => store.delete(id));
  } else {
    gone.forEach((each) => memory.messages.delete(each));
    memory.conversations.delete(id);
  }
  draft(id, "");
  tell({ conversation: id, gone: true });
}

function tell(what) {
  channel?.postMessage(what);
}

/** Calls `heard` with what another tab has changed. */
export function onChange(heard) {
  channel?.addEventListener("message", (event) => heard(event.data));
}

// ---- what is being typed: written at once, so that nothing is lost however the page ends

const DRAFT = "mimo.draft.";

/** Keeps what is typed for a conversation or message; without `text`, gives it. */
export function draft(id, text) {
  try {
    if (text === undefined) return localStorage.getItem(DRAFT + id) ?? "";
    if (text) localStorage.setItem(DRAFT + id, text);
    else localStorage.removeItem(DRAFT + id);
  } catch { /* full, or forbidden */ }
  return text ?? "";
}

/** The ids that something is typed for. */
export function drafts() {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(DRAFT)).map((name) => name.slice(DRAFT.length));
  } catch {
    return [];
  }
}

/** A small document in this browser, such as the settings. */
export function kept(name, value) {
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(`mimo.${name}`) ?? "null");
    localStorage.setItem(`mimo.${name}`, JSON.stringify(value));
  } catch { /* full, or forbidden */ }
  return value ?? null;
}
