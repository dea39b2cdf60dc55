// Asks the server: JSON, and streams of events. Knows the key, and whether the server can be reached.

const KEY = "mimo.key";
let key = read(sessionStorage) ?? read(localStorage) ?? "";

function read(storage) {
  try { return storage.getItem(KEY); } catch { return null; }
}

/** What the server answered instead of what was asked for. `status` is 0 if it could not be reached. */
export class Failure extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Keeps the key: in this tab, or in this browser. */
export function useKey(given, stays) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
    if (stays) localStorage.setItem(KEY, given);
    else localStorage.removeItem(KEY);
  } catch { /* it stays in memory */ }
}

async function send(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  throw new Failure(response.status, document.error?.message ?? `The server answered ${response.status}.`, document.error?.code);
}

/** The JSON document at a path; with a body, the answer to it. */
export async function ask(path, body) {
  return (await send(path, body)).json();
}

/** The events of a stream, as documents. A connection that ends before the stream does is a Failure with status 0. */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let ended = false;
  while (!ended) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0, "The connection was lost.");
    }
    if (part.done) throw new Failure(0, "The connection was lost.");
    waiting += part.value;
    const found = waiting.split("\n\n");
    waiting = found.pop();
    for (const each of found) {
      const data = each.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data) continue;
      const document = JSON.parse(data);
      yield document;
      ended ||= document.type === "end" || document.type === "failed";
    }
  }
}

/** Whether the server is there. */
export async function isThere() {
  try {
    return (await fetch("health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}
