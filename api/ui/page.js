// The operator's page: everything comes from /v1/admin and /v1 of the replica that served this file.
import { Session } from "./session.js";
import { Samples, Meters } from "./metrics.js";
import { ask } from "./playground.js";

const REFRESH_MS = 1000;
const session = new Session();
const meters = new Meters();
const $ = (id) => document.getElementById(id);
let timer = 0;
let slow = 0;

function say(id, text) {
  // A status that is written again with the same words is not read out again.
  if ($(id).textContent !== text) $(id).textContent = text;
}

function cell(text, name) {
  const made = document.createElement("td");
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", () => work(made, act));
  return made;
}

// Rows are keyed and kept, so that a refresh takes the focus from nobody.
function fill(id, rows, none) {
  const body = $(id).tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const width = $(id).tHead.rows[0].cells.length;
  if (!rows.length) rows = [{ key: "", cells: [none], span: width }];
  rows.forEach(({ key, cells, actions, span }, at) => {
    let row = old.get(key);
    const signature = JSON.stringify([key, (actions ?? []).map(([text]) => text)]);
    if (!row || row.dataset.signature !== signature) {
      row?.remove();
      row = document.createElement("tr");
      row.dataset.key = key;
      row.dataset.signature = signature;
      cells.forEach(() => row.append(cell("")));
      if (actions) {
        const last = cell("");
        actions.forEach(([text, label, act]) => last.append(button(text, label, act)));
        row.append(last);
      }
    }
    cells.forEach((value, index) => {
      const [text, name] = Array.isArray(value) ? value : [value, ""];
      if (row.cells[index].textContent !== String(text)) row.cells[index].textContent = text;
      row.cells[index].className = name;
      if (span) row.cells[index].colSpan = span;
    });
    old.delete(key);
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  old.forEach((row) => row.remove());
}

async function work(control, act) {
  control.disabled = true;
  say("notice", "");
  try {
    say("done", await act());
    await refresh(true);
  } catch (error) {
    say("notice", error.message);
  } finally {
    control.disabled = false;
  }
}

const mib = (bytes) => `${Math.round(bytes / 1048576)} MiB`;
const state = (text) => [text, text === "ready" ? "good" : text === "failed" ? "bad" : ""];
const shown = (value) => (value === null || value === undefined ? "none" : value);

function showWorkers(workers) {
  const rows = workers.flatMap((worker) =>
    worker.models.map((model) => ({
      key: `${worker.worker} ${model.id}`,
      cells: [
        worker.worker, model.id, state(worker.draining ? "draining" : model.state), model.num_running, model.num_waiting,
        `${model.num_free_slots} of ${model.num_slots} free`, `${model.num_pages_used} of ${model.num_pages}`,
        model.tokens_per_s.toFixed(1), mib(worker.rss_bytes), `${worker.age_s} s ago`,
      ],
    })));
  fill("workers", rows, "No worker runs.");
}

function showModels(models) {
  const rows = models.data.map((model) => ({
    key: model.id,
    cells: [model.id, model.backend, state(model.state), model.id === models.default ? "default" : ""],
    actions: [
      ...(model.id === models.default ? [] : [["Make default", `Make ${model.id} the default`, async () => {
        await session.call("PUT", "/v1/admin/models/default", { id: model.id });
        return `${model.id} is the default.`;
      }]]),
      ["Unload", `Unload ${model.id}`, async () => {
        await session.call("DELETE", `/v1/admin/models/${model.id.split("/").map(encodeURIComponent).join("/")}`);
        return `${model.id} is being unloaded.`;
      }],
    ],
  }));
  fill("registry", rows, "No model can be asked for.");
  const names = models.data.map((model) => model.id);
  const select = $("ask-model");
  if (names.join() !== [...select.options].map((option) => option.value).join()) {
    const chosen = select.value || models.default;
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  }
}

function showLanes(lanes) {
  const rows = lanes.map((lane) => ({
    key: `${lane.model} ${lane.service_class} ${lane.tenant}`,
    cells: [lane.model, lane.service_class, lane.tenant, lane.num_waiting, lane.num_running,
      lane.oldest_age_s === null ? "" : `${Math.round(lane.oldest_age_s)} s`],
  }));
  fill("lanes", rows, "Nothing waits and nothing runs.");
}

function showLetters(letters) {
  const path = (letter) => `/v1/admin/queue/dead/${encodeURIComponent(letter.id)}`;
  const rows = letters.map((letter) => ({
    key: letter.id,
    cells: [letter.id, letter.model, letter.tenant, new Date(letter.at * 1000).toLocaleString(), letter.code],
    actions: [
      ["Retry", `Retry ${letter.id}`, async () => {
        const answer = await session.call("POST", `${path(letter)}/retry`, {});
        return `${letter.id} was answered with ${answer.usage.completion_tokens} tokens.`;
      }],
      ["Drop", `Drop ${letter.id}`, async () => {
        await session.call("DELETE", path(letter));
        return `${letter.id} was dropped.`;
      }],
    ],
  }));
  fill("letters", rows, "No request was given up.");
}

function showLimits(limits) {
  const row = (of, limit) => ({
    key: of,
    cells: [of, shown(limit.requests_per_minute), shown(limit.tokens_per_minute), shown(limit.tokens_per_month)],
  });
  const named = (what, limits_) => Object.entries(limits_).map(([name, limit]) => row(`${what} ${name}`, limit));
  fill("rates", [row("every key", limits.key), row("every tenant", limits.tenant),
    ...named("key", limits.keys), ...named("tenant", limits.tenants)], "No limit is in force.");
}

function showMetrics(replica, text) {
  meters.add(replica, new Samples(text), performance.now() / 1000);
  const hits = meters.hits().map(([labels, count]) => ({
    key: `${labels.guardrail} ${labels.stage} ${labels.action}`,
    cells: [labels.guardrail, labels.stage, labels.action, count],
  }));
  fill("hits", hits, "Nothing was found.");
  const tiles = meters.tiles();
  const list = $("tiles");
  tiles.forEach(([name, value], at) => {
    if (!list.children[at]) {
      const group = document.createElement("div");
      group.append(document.createElement("dt"), document.createElement("dd"));
      list.append(group);
    }
    const [term, definition] = list.children[at].children;
    term.textContent = name;
    definition.textContent = value;
  });
  meters.draw($("chart"), $("chart-text"));
}

async function refresh(all = false) {
  const [workers, lanes, metrics] = await Promise.all([
    session.call("GET", "/v1/admin/workers"),
    session.call("GET", "/v1/admin/queue"),
    session.metrics(),
  ]);
  showWorkers(workers.data);
  showLanes(lanes.data);
  showMetrics(...metrics);
  if (all || slow++ % 3 === 0) {
    const [models, letters, limits] = await Promise.all([
      session.call("GET", "/v1/admin/models"),
      session.call("GET", "/v1/admin/queue/dead"),
      session.call("GET", "/v1/admin/rate_limit"),
    ]);
    showModels(models);
    showLetters(letters.data);
    showLimits(limits);
  }
}

async function tick() {
  try {
    await refresh();
    if (lost) say("notice", "");
    lost = false;
  } catch (error) {
    if (error.status === 401 || error.status === 403) return leave(error.message);
    lost = true;
    say("notice", `The server does not answer: ${error.message}`);
  }
  timer = setTimeout(tick, REFRESH_MS);
}
let lost = false;

async function enter() {
  try {
    await refresh(true);
  } catch (error) {
    return leave(error.message);
  }
  say("notice", "");
  $("enter").hidden = true;
  $("page").hidden = false;
  $("leave").hidden = false;
  $("now").setAttribute("tabindex", "-1");
  $("now").focus();
  timer = setTimeout(tick, REFRESH_MS);
}

function leave(why) {
  clearTimeout(timer);
  session.forget();
  $("page").hidden = true;
  $("leave").hidden = true;
  $("enter").hidden = false;
  say("notice", why);
  $("key").focus();
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  session.remember($("key").value);
  $("key").value = "";
  enter();
});
$("leave").addEventListener("click", () => leave(""));
$("load").addEventListener("submit", (event) => {
  event.preventDefault();
  work(event.submitter, async () => {
    const id = $("load-id").value;
    const path = $("load-path").value || null;
    await session.call("POST", "/v1/admin/models", { id, path, backend: $("load-backend").value });
    event.target.reset();
    return `${id} is being loaded.`;
  });
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(session, {
    model: $("ask-model").value, text: $("ask-text").value, maxTokens: Number($("ask-tokens").value),
    answer: $("answer"), about: $("answer-about"), send: event.submitter, stop: $("ask-stop"),
  });
});
if (session.known) enter();
