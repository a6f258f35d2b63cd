// Draws the model. What came from the broker becomes text nodes and numbers, never markup; nodes are made once and used
// again, so that the page's size does not depend on how long it is open.

import { ROWS } from "./model.js";

const $ = (name) => document.getElementById(name);
const ROWS_PER_FRAME = 6;

// Said outright, because a table that a phone lays out as blocks would be none to a screen reader.
const ROLES = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };

function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (ROLES[tag]) node.setAttribute("role", ROLES[tag]);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// Writing what is there already would cost a layout.
function write(node, text) { if (node.textContent !== text) node.textContent = text; }
function show(node, shown) { if (node.hidden === shown) node.hidden = !shown; }
function width(node, share) {
  const value = `${(100 * share).toFixed(1)}%`;
  if (node.style.width !== value) node.style.width = value;
}

const whole = new Intl.NumberFormat("en");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const bare = (value) => value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
const ms = (value) => (value >= 10_000 ? `${(value / 1000).toFixed(1)} s` : `${bare(value)} ms`);
function ago(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}
const exitName = (exit) => (exit === null || exit < 0 ? "no exit" : `exit ${exit}`);
const branchName = ({ branch, device }) => `branch ${branch} (${device ?? "no board"})`;
// One by name, of more the number: the line is short, and its title has them all.
const missing = (branches) => (branches.length === 1 ? branchName(branches[0]) : `${branches.length} branches`);
const plural = (n, word) => `${whole.format(n)} ${word}${n === 1 ? "" : "s"}`;

// Keeps one child of `parent` for each key, in the order given.
class Keyed {
  constructor(parent, create) { Object.assign(this, { parent, create, parts: new Map() }); }

  draw(items, keyOf, update) {
    const seen = new Set();
    let place = this.parent.firstElementChild;
    for (const item of items) {
      const key = keyOf(item);
      seen.add(key);
      if (!this.parts.has(key)) this.parts.set(key, this.create());
      const part = this.parts.get(key);
      update(part, item);
      if (part.root === place) place = place.nextElementSibling;
      else this.parent.insertBefore(part.root, place);
    }
    for (const [key, part] of this.parts) if (!seen.has(key)) { part.root.remove(); this.parts.delete(key); }
  }
}

// ---------------------------------------------------------------- results

class Results {
  constructor(model) {
    this.model = model;
    this.list = $("rows");
    this.rows = [];
    this.byKey = new Map();
    this.paused = false;
    model.onPicture = (key, blob) => this.addPicture(key, blob);
  }

  // Draws some of what waits; true if more is left for the next frame.
  draw() {
    const { model } = this;
    if (!this.paused) {
      for (let n = 0; n < ROWS_PER_FRAME && model.waiting.length; n++) this.put(model.waiting.shift());
    }
    show($("no-results"), this.rows.length === 0);
    const kept = model.waiting.length;
    show($("skipped"), model.dropped > 0 || (this.paused && kept > 0));
    const skipped = `${plural(model.dropped, "result")} not shown`;
    write($("skipped"), this.paused ? `paused · ${kept} new${model.dropped ? ` · ${skipped}` : ""}` : skipped);
    return !this.paused && kept > 0;
  }

  put(result) {
    const row = this.rows.length < ROWS ? this.newRow() : this.rows.pop();
    this.rows.unshift(row);
    this.byKey.delete(row.key);
    row.key = result.key;
    this.byKey.set(row.key, row);
    this.setPicture(row, this.model.picture(result.key));
    write(row.label, result.label ?? "no answer");
    row.root.classList.toggle("unanswered", result.classId === null);
    write(row.input, result.input || result.request);
    write(row.confidence, result.classId === null ? "–" : percent(result.confidence));
    width(row.bar, result.classId === null ? 0 : result.confidence);
    write(row.exit, exitName(result.exit));
    write(row.reason, result.reason + (result.late ? ", late" : "") +
      (result.missing.length ? `, ${missing(result.missing)} missing` : ""));
    row.reason.dataset.reason = result.reason;
    row.reason.title = result.missing.map(branchName).join(", ");
    write(row.latency, ms(result.latency));
    write(row.time, result.time.toLocaleTimeString([], { hour12: false }));
    const several = this.model.sites().size > 1;
    write(row.where, `${several ? `${result.site}/` : ""}${result.pipeline} · ${result.origin}`);
    this.list.prepend(row.root);
  }

  newRow() {
    const row = { key: null, url: null };
    row.image = make("img");
    row.image.alt = "";
    row.image.decoding = "async";
    row.image.hidden = true;
    row.image.addEventListener("error", () => { if (row.url) { this.setPicture(row, undefined); this.model.refused += 1; } });
    const cell = (name, className) => (row[name] = make("span", className));
    row.bar = make("span", "fill");
    row.root = make("li", "",
      make("span", "thumb", row.image),
      make("span", "what", cell("label", "label"), cell("input", "dim")),
      make("span", "sure", cell("confidence", "number"), make("span", "track", row.bar)),
      make("span", "why", cell("exit", "chip"), cell("reason", "reason")),
      make("span", "took", cell("latency", "number")),
      make("span", "from", cell("where", "dim"), cell("time", "dim number")));
    return row;
  }

  setPicture(row, blob) {
    if (row.url) URL.revokeObjectURL(row.url);
    row.url = blob ? URL.createObjectURL(blob) : null;
    row.image.hidden = !blob;
    if (blob) { row.image.src = row.url; this.list.classList.add("pictured"); } else row.image.removeAttribute("src");
  }

  empty() {
    for (const row of this.rows) { this.setPicture(row, undefined); row.root.remove(); }
    this.rows = [];
    this.byKey.clear();
    this.list.classList.remove("pictured");
  }

  // A picture may come after its result; true if its row is there.
  addPicture(key, blob) {
    const row = this.byKey.get(key);
    if (row) this.setPicture(row, blob);
    return row !== undefined;
  }
}

// ---------------------------------------------------------------- exits

const HEADS = ["Exit", "Threshold", "Share", "Results", "Median latency", "Median of each part"];

function newPipeline() {
  const part = { name: make("h3"), model: make("p", "dim"), plan: make("p", "plan") };
  const body = make("tbody");
  const head = make("tr", "", ...HEADS.map((title) => {
    const cell = make("th", "", title);
    cell.scope = "col";
    cell.setAttribute("role", "columnheader");
    return cell;
  }));
  const table = make("table", "", make("thead", "", head), body);
  part.table = table;
  part.rows = new Keyed(body, newExit);
  part.root = make("article", "card", make("div", "bar", part.name, part.model), part.plan, table);
  return part;
}

function newExit() {
  const part = {};
  const cell = (name, ...children) => {
    part[name] = make("td", name, ...children);
    return part[name];
  };
  part.head = make("th", "exit");
  part.head.scope = "row";
  part.head.setAttribute("role", "rowheader");
  part.shareText = make("span", "number");
  part.shareBar = make("span", "fill");
  for (const name of ["queue", "compute", "network"]) part[name] = make("span", `part ${name}`);
  part.split = make("span", "split", part.queue, part.compute, part.network);
  part.splitText = make("span", "number dim");
  part.root = make("tr", "", part.head, cell("threshold"),
    cell("share", part.shareText, make("span", "track", part.shareBar)),
    cell("count"), cell("median"), cell("where", part.split, part.splitText));
  return part;
}

function drawExit(part, row) {
  write(part.head, row.exit < 0 ? "none" : String(row.exit));
  write(part.threshold, row.threshold);
  write(part.shareText, row.total ? percent(row.share) : "–");
  width(part.shareBar, row.share);
  write(part.count, whole.format(row.count));
  write(part.median, row.latency === null ? "–" : ms(row.latency));
  const total = row.queue + row.compute + row.network;
  width(part.split, row.longest > 0 ? total / row.longest : 0);
  for (const name of ["queue", "compute", "network"]) width(part[name], total > 0 ? row[name] / total : 0);
  write(part.splitText, total > 0 ? `${[row.queue, row.compute, row.network].map(bare).join(" + ")} ms` : "");
  const told = `queue ${ms(row.queue)}, compute ${ms(row.compute)}, network and rest ${ms(row.network)}`;
  if (total > 0 && part.split.title !== told) part.split.title = told;
}

function planLine(pipeline, boards) {
  const { plan } = pipeline;
  if (!plan) {
    const epoch = boards[0]?.epoch ?? pipeline.epoch;
    return `Thresholds of the bundle; no plan is published${epoch === null ? "" : `. Epoch ${epoch}`}`;
  }
  const agree = boards.filter((each) => each.hash === plan.hash).length;
  const force = boards.length ? `, in force on ${agree} of ${plural(boards.length, "board")}` : "";
  const audits = plan.auditRate ? ` · ${percent(plan.auditRate)} audited` : "";
  return `${plan.criterion} · epoch ${plan.epoch}${force}${audits}`;
}

const NEVER = 1e300; // the threshold that keeps an exit closed

function threshold(plan, exit) {
  if (!plan || exit < 0) return "–";
  const value = plan.thresholds[exit];
  if (value === undefined) return exit === plan.thresholds.length ? "last" : "–";
  if (value >= NEVER) return "never";
  return `≥ ${Number(value.toPrecision(4))}`;
}

// ---------------------------------------------------------------- devices

const STATES = { ready: "ready", init: "starting", draining: "draining", disconnected: "stopped", lost: "offline" };

function newDevice() {
  const part = {};
  for (const name of ["name", "serves", "figures"]) part[name] = make("span", name);
  part.state = make("span", "pill");
  part.root = make("li", "", make("span", "line", part.name, part.state), part.serves, part.figures);
  return part;
}

function serves(meta) {
  if (!meta) return "";
  const byPipeline = new Map();
  const add = (name, what) => byPipeline.set(name, [...(byPipeline.get(name) ?? []), what]);
  for (const name of meta.origins) add(name, "origin");
  for (const { pipeline, stage, branch } of meta.stages) add(pipeline, `stage ${stage}${branch === null ? "" : `, branch ${branch}`}`);
  for (const name of meta.fusers) if (!meta.origins.includes(name)) add(name, "fuses");
  return [...byPipeline].map(([name, what]) => `${name}: ${what.join(", ")}`).join(" · ");
}

function figures(device, now) {
  const { report, meta } = device;
  if (!report) return meta ? `${meta.machine} · ${whole.format(meta.memoryMb)} MB` : "";
  const waiting = report.pipelines.reduce((sum, each) => sum + each.waiting, 0);
  const dead = report.deadLetters ? ` · ${plural(report.deadLetters, "dead letter")}` : "";
  const age = now - device.reportAt;
  if (device.state === "lost" || device.state === "disconnected") return `last report ${ago(age)} ago${dead}`;
  const silent = age > 15 ? ` · last report ${ago(age)} ago` : "";
  return `${Math.round(report.rssBytes / 1e6)} MB · up ${ago(report.uptime)} · ${waiting} waiting${dead}${silent}`;
}

const SEVERITIES = { info: "info", warning: "warning", error: "error" };

function newEvent() {
  const part = {};
  for (const name of ["when", "about", "told", "remedy"]) part[name] = make("span", name);
  part.mark = make("span", "pill");
  part.root = make("li", "", make("span", "line", part.about, part.mark, part.when), part.told, part.remedy);
  return part;
}

// ---------------------------------------------------------------- the page

export class View {
  constructor(model) {
    this.model = model;
    this.results = new Results(model);
    this.pipelines = new Keyed($("pipelines"), newPipeline);
    this.devices = new Keyed($("devices"), newDevice);
    this.events = new Keyed($("events"), newEvent);
  }

  state(state, line) {
    $("state").dataset.state = state;
    write($("state-text"), line);
    const asked = state === "idle" || state === "refused";
    show($("login"), asked);
    show($("leave"), !asked);
    document.body.classList.toggle("away", state === "lost");
  }

  empty() { this.results.empty(); }

  drawResults() { return this.results.draw(); }

  drawPanels() {
    const { model } = this;
    const now = model.now();
    write($("total"), whole.format(model.total));
    write($("rate"), whole.format(Math.round(model.rate())));
    write($("late"), whole.format(model.late));
    write($("dropped"), whole.format(model.dropped));
    write($("refused"), whole.format(model.refused));
    this.drawPipelines(now);
    this.drawDevices(now);
    this.drawEvents();
  }

  drawEvents() {
    const { events } = this.model;
    const several = this.model.sites().size > 1;
    show($("no-events"), events.length === 0);
    this.events.draw(events, (event) => event.key, (part, event) => {
      write(part.when, event.time.toLocaleTimeString());
      write(part.mark, SEVERITIES[event.severity]);
      part.mark.dataset.state = event.severity;
      write(part.about, [several ? event.site : null, event.device, event.pipeline].filter(Boolean).join(" / ") || "orchestrator");
      write(part.told, event.unsaid ? `${event.what} (and ${plural(event.unsaid, "time")} before)` : event.what);
      write(part.remedy, event.remedy);
      show(part.remedy, event.remedy !== "");
    });
  }

  drawPipelines(now) {
    const { model } = this;
    const several = model.sites().size > 1;
    const all = [...model.pipelines].sort(([a], [b]) => (a < b ? -1 : 1));
    show($("no-pipelines"), all.length === 0);
    this.pipelines.draw(all, ([key]) => key, (part, [, pipeline]) => {
      const { plan, site, name } = pipeline;
      write(part.name, several ? `${site} / ${name}` : name);
      write(part.model, [pipeline.model, pipeline.revision].filter(Boolean).join(" · "));
      write(part.plan, planLine(pipeline, model.boards(site, name)));
      const rows = pipeline.flow.summary(now, plan ? plan.thresholds.length + 1 : 0);
      const longest = Math.max(...rows.map((row) => row.queue + row.compute + row.network));
      const total = rows.reduce((sum, row) => sum + row.count, 0);
      show(part.table, rows.length > 0);
      part.rows.draw(rows, (row) => row.exit, (exit, row) =>
        drawExit(exit, { ...row, longest, total, threshold: threshold(plan, row.exit) }));
    });
  }

  drawDevices(now) {
    const { model } = this;
    const several = model.sites().size > 1;
    const boards = [...model.devices].map(([key, device]) => ({
      key,
      name: device.name,
      site: device.site,
      state: device.stale ? "stale" : device.state ?? "unknown",
      serves: serves(device.meta),
      figures: figures(device, now),
    }));
    const planners = [...model.orchestrators].map(([site, claim]) => ({
      key: `${site}/~`, // after the boards
      name: "orchestrator",
      site,
      state: claim.running ? "ready" : "lost",
      serves: claim.orchestrator,
      figures: "",
    }));
    const all = [...boards, ...planners].sort((a, b) => (a.key < b.key ? -1 : 1));
    show($("no-devices"), all.length === 0);
    const ready = boards.filter((device) => device.state === "ready").length;
    write($("online"), boards.length ? `${ready} of ${boards.length} ready` : "");
    this.devices.draw(all, (item) => item.key, (part, item) => {
      write(part.name, several ? `${item.site} / ${item.name}` : item.name);
      write(part.state, STATES[item.state] ?? (item.state === "stale" ? "not heard" : "unknown"));
      part.state.dataset.state = item.state;
      write(part.serves, item.serves);
      write(part.figures, item.figures);
    });
  }
}
