"use strict";
const PERIOD_MS = 2000;
const SAMPLES = 60;
const base = location.pathname.endsWith("/") ? location.pathname : location.pathname + "/";
const element = (id) => document.getElementById(id);
let models = [];
let before = null; // the last metrics, with their time
let rates = []; // requests a second
let messages = []; // of the chat
let running = null; // aborts what is generated

function headers() {
  const key = element("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
}

async function call(path, options = {}) {
  const response = await fetch(base + path, { headers: headers(), ...options });
  if (response.status === 401) element("key-label").hidden = false;
  if (!response.ok) {
    const text = await response.text();
    let reason = text.slice(0, 300);
    try {
      const found = JSON.parse(text).error;
      reason = typeof found === "string" ? found : found.message;
    } catch { /* not JSON */ }
    throw new Error(reason || "status " + response.status);
  }
  return response;
}

function post(path, body, signal) {
  return call(path, { method: "POST", body: JSON.stringify(body), signal });
}

// Models and metrics.

async function refreshModels() {
  const found = (await (await call("v1/models")).json()).data;
  if (JSON.stringify(found) !== JSON.stringify(models)) {
    models = found;
    fillModels();
  }
}

function fillModels() {
  const generates = element("mode").value !== "embedding";
  const wanted = models.filter((model) => ("max_model_len" in model) === generates).map((model) => model.id);
  const chosen = element("model").value;
  element("model").replaceChildren(...wanted.map((name) => new Option(name, name)));
  if (wanted.includes(chosen)) element("model").value = chosen;
  for (const each of document.querySelectorAll(".generates")) each.hidden = !generates;
}

// {model: {metric: sum over its other labels}} of Prometheus's text.
function parseMetrics(text) {
  const found = Object.create(null); // a model may have any name
  for (const line of text.split("\n")) {
    const match = /^(llmos_\w+)\{(.*)\} (\S+)$/.exec(line);
    if (!match || match[1].endsWith("_bucket")) continue;
    const name = /model_name="([^"]*)"/.exec(match[2]);
    if (!name) continue;
    const values = (found[name[1]] ??= {});
    values[match[1]] = (values[match[1]] ?? 0) + Number(match[3]);
  }
  return found;
}

async function refreshMetrics() {
  const values = parseMetrics(await (await call("metrics")).text());
  const now = performance.now() / 1000;
  const seconds = before ? now - before.now : 0;
  let total = 0;
  const rows = models.map(({ id }) => {
    const value = (name) => values[id]?.[name];
    const delta = (name) => (value(name) ?? 0) - (before?.values[id]?.[name] ?? 0);
    const rate = (name) => (seconds ? delta(name) / seconds : 0);
    const requests = rate("llmos_request_success_total");
    total += requests;
    const tokens = rate("llmos_prompt_tokens_total") + rate("llmos_generation_tokens_total");
    const count = before ? delta("llmos_e2e_request_latency_seconds_count") : 0;
    const latency = count ? ((delta("llmos_e2e_request_latency_seconds_sum") / count) * 1000).toFixed(1) + " ms" : "";
    const cache = value("llmos_kv_cache_usage_perc");
    return [
      id, value("llmos_num_requests_running") ?? 0, value("llmos_num_requests_waiting") ?? 0, value("llmos_request_success_total") ?? 0,
      requests.toFixed(1), tokens.toFixed(0), latency, cache === undefined ? "" : (100 * cache).toFixed(0) + " %",
    ];
  });
  element("models").replaceChildren(...rows.map(row));
  before = { now, values };
  if (seconds) draw(total);
}

function row(cells) {
  const found = document.createElement("tr");
  for (const cell of cells) found.insertCell().textContent = String(cell);
  return found;
}

function draw(rate) {
  rates = [...rates, rate].slice(-SAMPLES);
  const most = Math.max(1, ...rates);
  const points = rates.map((each, index) => `${(index * 600) / (SAMPLES - 1)},${58 - (54 * each) / most}`);
  element("line").setAttribute("points", points.join(" "));
  element("chart-text").textContent = `${rate.toFixed(1)} requests/s, at most ${most.toFixed(1)} in the last ${rates.length * (PERIOD_MS / 1000)} s`;
}

async function refresh() {
  const state = element("state");
  try {
    await refreshModels();
    await refreshMetrics();
    state.textContent = "ready";
    state.className = "state";
  } catch (error) {
    state.textContent = error.message;
    state.className = "state failed";
  }
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, PERIOD_MS);
}

// Playground.

function say(role, text) {
  const found = document.createElement("div");
  found.className = "message " + role;
  found.textContent = text;
  element("transcript").append(found);
  found.scrollIntoView({ block: "end" });
  return found;
}

// Calls `take` with each event of a stream of server-sent events.
async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      take(found);
    }
  }
}

function parameters() {
  const temperature = element("temperature").value;
  const maxTokens = element("max-tokens").value;
  return {
    model: element("model").value,
    ...(temperature === "" ? {} : { temperature: Number(temperature) }),
    ...(maxTokens === "" ? {} : { max_tokens: Number(maxTokens) }),
  };
}

async function generate(text, signal) {
  const chats = element("mode").value === "chat";
  const body = { ...parameters(), stream: true, stream_options: { include_usage: true } };
  say("user", text);
  if (chats) messages.push({ role: "user", content: text });
  Object.assign(body, chats ? { messages } : { prompt: text });
  const begin = performance.now();
  const shown = say("assistant", "");
  let answer = "";
  let first = null;
  let usage = null;
  try {
    const response = await post(chats ? "v1/chat/completions" : "v1/completions", body, signal);
    await readEvents(response, (event) => {
      const choice = event.choices[0];
      const more = choice ? (chats ? choice.delta.content : choice.text) : null;
      if (more) {
        first ??= performance.now();
        answer += more;
        shown.textContent = answer;
      }
      usage = event.usage ?? usage;
    });
  } finally {
    if (chats && answer) messages.push({ role: "assistant", content: answer });
    else if (chats) messages.pop();
  }
  const seconds = (performance.now() - (first ?? begin)) / 1000;
  const speed = usage && usage.completion_tokens > 1 ? `, ${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  return `first token after ${((first ?? performance.now()) - begin).toFixed(0)} ms${speed}` + (usage ? `, ${usage.completion_tokens} tokens` : "");
}

async function embed(text, signal) {
  const input = text.split("\n").filter((line) => line.trim());
  const begin = performance.now();
  const found = (await (await post("v1/embeddings", { model: element("model").value, input }, signal)).json()).data;
  const vectors = found.map((each) => each.embedding);
  const product = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
  const cosine = (a, b) => product(a, b) / Math.sqrt(product(a, a) * product(b, b) || 1);
  input.forEach((line, index) => {
    const values = vectors[index].slice(0, 6).map((value) => value.toFixed(4));
    const others = vectors.map((other) => cosine(vectors[index], other).toFixed(3));
    say("assistant", `${line}\n[${values.join(", ")}, …] of ${vectors[index].length}\ncosines: ${others.join("  ")}`);
  });
  return `${input.length} embeddings in ${(performance.now() - begin).toFixed(0)} ms`;
}

async function send() {
  const text = element("input").value;
  if (!text.trim() || running) return;
  running = new AbortController();
  element("send").disabled = true;
  element("stop").disabled = false;
  element("note").textContent = "…";
  try {
    const work = element("mode").value === "embedding" ? embed : generate;
    element("input").value = "";
    element("note").textContent = await work(text, running.signal);
  } catch (error) {
    element("note").textContent = "";
    say("failed", error.name === "AbortError" ? "stopped" : error.message);
  } finally {
    running = null;
    element("send").disabled = false;
    element("stop").disabled = true;
    element("input").focus();
  }
}

element("send").addEventListener("click", send);
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  messages = [];
  element("transcript").replaceChildren();
});
element("mode").addEventListener("change", fillModels);
element("key").addEventListener("change", refresh);
element("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && element("mode").value !== "embedding") {
    event.preventDefault();
    send();
  }
});
poll();
