// Ties the parts together: what comes from the broker is checked and counted at once, and drawn by animation frames.

import { decode, Refused } from "./decode.js";
import { Link } from "./link.js";
import { Model } from "./model.js";
import { View } from "./view.js";

const PANELS_MS = 500; // tables and totals; results are drawn with every frame
const SILENT_S = 20; // boards report every few seconds

const $ = (name) => document.getElementById(name);
const model = new Model();
const view = new View(model);
let frame = 0;
let panelsAt = -Infinity;
let panels = true;
let told = { state: "idle", line: "" };
let asked = null; // broker and site of what the model holds

function draw(now) {
  frame = 0;
  let more = view.drawResults();
  if (panels && now - panelsAt >= PANELS_MS) {
    panelsAt = now;
    panels = false;
    view.drawPanels();
    tellSilence();
  }
  if (more) schedule();
}
function schedule() { frame ||= requestAnimationFrame(draw); }

// Time goes by though nothing comes: rates fall, minutes end.
setInterval(() => { panels = true; schedule(); }, PANELS_MS);

const link = new Link(
  (topic, payload) => {
    try {
      if (!model.take(decode(topic, payload))) model.refused += 1;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      model.refused += 1;
    }
    schedule();
  },
  (state, line) => {
    told = { state, line };
    if (state === "lost") model.disconnected();
    if (state === "connected") model.heardAt = model.now();
    view.state(state, line);
    panels = true;
    schedule();
  },
);

// A connection can be dead long before anything notices; that nothing is heard is seen at once.
function tellSilence() {
  if (told.state !== "connected") return;
  const silent = model.devices.size > 0 && model.now() - model.heardAt > SILENT_S;
  view.state(silent ? "silent" : "connected", silent ? `${told.line}, but nothing is heard` : told.line);
}

for (const url of document.querySelector("meta[name=distree-brokers]").content.split(" ")) $("broker").add(new Option(url, url));

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = $("broker").value, site = $("site").value.trim();
  if (asked !== `${url} ${site}`) {
    asked = `${url} ${site}`;
    model.empty();
    view.empty();
  }
  link.open({ url, site, user: $("user").value, password: $("password").value });
  $("leave").focus({ preventScroll: true });
});

$("leave").addEventListener("click", () => {
  link.close();
  model.disconnected();
  view.state("idle", "Not connected");
  told = { state: "idle", line: "" };
  $("broker").focus();
});

$("pause").addEventListener("click", () => {
  view.results.paused = !view.results.paused;
  $("pause").setAttribute("aria-pressed", String(view.results.paused));
  $("pause").textContent = view.results.paused ? "Resume" : "Pause";
  schedule();
});
