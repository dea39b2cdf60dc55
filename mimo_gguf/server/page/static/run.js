// One answer on its way: reads its events into the message, keeps what has come, and tells who shows it.

import { events, Failure } from "./server.js";
import { changeMessage, kept } from "./store.js";

const OFTEN = 400; // milliseconds between two writes
export const SILENT = 6000; // milliseconds after which an answer that nobody writes on has no tab any more

/** This tab, also after it was reloaded. */
export const TAB = (() => {
  const own = sessionStorage.getItem("mimo.tab") ?? String(Math.random()).slice(2);
  sessionStorage.setItem("mimo.tab", own);
  return own;
})();

/** The answers that this tab reads, by the ids of their messages. */
export const runs = new Map();

export class Run {
  /** `show(message, event)` is called for each event, and each second while nothing comes. */
  constructor(message, body, show) {
    this.message = message;
    this.show = show;
    this.body = body;
    this.began = Date.now();
    this.before = { tokens: message.tokens ?? 0, thought: message.thought ?? 0 };
    this.saved = 0;
    this.abort = new AbortController();
    this.phase = { type: "sent" };
    runs.set(message.id, this);
  }

  stop() {
    this.abort.abort();
  }

  /** Reads to the end. Whatever ends it, what has come stays. */
  async go() {
    const { message } = this;
    Object.assign(message, { state: "runs", owner: TAB, error: null });
    const clock = setInterval(() => { this.show(message, null); this.keep(); }, 1000);
    try {
      await this.keep(true);
      for await (const event of events("page/chat", this.body, this.abort.signal)) {
        this.take(event);
        this.show(message, event);
        this.keep();
      }
    } catch (error) {
      if (error.name === "AbortError") message.state = "stopped";
      else Object.assign(message, { state: error.status === 0 ? "lost" : "failed", error: error.message, code: error.code ?? null, status: error.status ?? null });
      if (!(error instanceof Failure) && error.name !== "AbortError") console.error(error);
    } finally {
      clearInterval(clock);
      runs.delete(message.id);
    }
    if (leaves) return; // what `pagehide` has written is the last word
    kept(`partial.${message.id}`, null);
    await this.keep(true).catch(() => {});
    this.show(message, { type: "over" });
  }

  take(event) {
    const { message } = this;
    if (event.type === "failed") throw new Failure(event.error.code === "timeout" ? 503 : 500, event.error.message, event.error.code);
    if (event.type === "begin") Object.assign(message, { model: event.model, window: event.window, prompt: event.prompt });
    if (event.type === "reading" || event.type === "begin") this.phase = event;
    if (event.type === "more") {
      message.thinking += event.thinking;
      message.text += event.text;
      message.tokens = this.before.tokens + event.tokens;
      message.thought = this.before.thought + event.thought;
      message.used = message.prompt + event.tokens;
      this.first ??= { at: performance.now(), tokens: event.tokens };
      const seconds = (performance.now() - this.first.at) / 1000;
      if (seconds > 0.5) message.rate = (event.tokens - this.first.tokens) / seconds;
      if (event.acceptance !== undefined) message.acceptance = event.acceptance;
    }
    if (event.type === "end") {
      message.state = event.finish === "stop" ? "done" : event.finish === "length" ? "length" : "stopped";
      message.used = event.usage.total_tokens;
      message.rate = event.timings.predicted_per_second ?? message.rate;
      message.acceptance = event.timings.acceptance;
      message.timings = event.timings;
    }
  }

  /** Writes what has come, but not too often. */
  async keep(now = false) {
    const at = Date.now();
    if (!now && at - this.saved < OFTEN) return;
    this.saved = at;
    this.message.beat = at;
    await changeMessage(this.message, plain(this.message));
  }
}

/** The fields of a message that are kept. */
function plain(message) {
  const { blocks, ...fields } = message;
  return fields;
}

/** Takes up answers that their tab has left: because it was closed, reloaded or lost. Gives those that changed. */
export function adopt(messages) {
  return messages.filter((message) => {
    if (message.state !== "runs" || runs.has(message.id)) return false;
    if (message.owner !== TAB && Date.now() - (message.beat ?? 0) < SILENT) return false;
    const last = kept(`partial.${message.id}`);
    if (last && last.text.length + last.thinking.length > message.text.length + message.thinking.length) Object.assign(message, last);
    kept(`partial.${message.id}`, null);
    message.state = "cut";
    changeMessage(message, plain(message), { mayMake: false });
    return true;
  });
}

// A browser may not finish a write to its database while a page closes; this one it does.
let leaves = false;
addEventListener("pageshow", () => { leaves = false; });
addEventListener("pagehide", () => {
  leaves = true;
  for (const { message } of runs.values()) kept(`partial.${message.id}`, plain(message));
});
