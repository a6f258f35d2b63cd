// What the page knows. Everything is bounded: pipelines, devices, results and pictures that wait to be drawn.

import { Flow } from "./flow.js";

export const ROWS = 30; // results shown, and at most so many waiting to be
const MAX_PIPELINES = 64;
const MAX_DEVICES = 256;
const MAX_PICTURES = 64;
export const EVENTS = 20; // shown, the newest first

const clock = () => performance.now() / 1000;

export class Model {
  constructor() {
    this.onPicture = () => {};
    this.empty();
  }

  // Forget all that was heard: another broker or site is asked.
  empty() {
    this.pipelines = new Map();
    this.devices = new Map();
    this.orchestrators = new Map();
    this.waiting = []; // results that are not drawn yet, oldest first
    this.events = [];
    this.eventCount = 0;
    this.pictures = new Map(); // of results to come, by request; oldest first
    this.total = this.late = this.dropped = this.refused = 0;
    this.heardAt = null;
    this.perSecond = new Float64Array(5);
    this.perSecondAt = -1;
  }

  // Take a decoded delivery; false if another pipeline or device had to make room for it.
  take({ at, message }) {
    this.heardAt = clock();
    switch (at.kind) {
      case "result": return this.takeResult(message);
      case "thumbnail": return this.takePicture(key(at.site, at.pipeline, message.request), message.blob);
      case "event":
      case "site-event": return this.takeEvent(at, message);
      case "plan": return this.takePlan(at, message);
      case "orchestrator":
        if (message) return bounded(this.orchestrators, at.site, MAX_PIPELINES, () => message, () => message);
        this.orchestrators.delete(at.site);
        return true;
      default: return this.takeDevice(at, message);
    }
  }

  pipeline(site, name, change) {
    const make = () => ({ site, name, model: "", revision: "", epoch: null, plan: null, flow: new Flow() });
    return bounded(this.pipelines, key(site, name), MAX_PIPELINES, make, change);
  }

  takeResult(result) {
    if (!result.final) { this.late += 1; return true; }
    const now = clock();
    const fits = this.pipeline(result.site, result.pipeline, (pipeline) => {
      pipeline.model = result.model;
      pipeline.revision = result.revision;
      pipeline.epoch = result.epoch;
      pipeline.flow.add(now, result);
    });
    this.total += 1;
    if (result.late) this.late += 1;
    this.tally(now);
    result.key = key(result.site, result.pipeline, result.request);
    result.time = new Date();
    this.waiting.push(result);
    if (this.waiting.length > ROWS) { this.waiting.shift(); this.dropped += 1; }
    return fits;
  }

  takeEvent(at, event) {
    this.events.unshift({ ...event, site: at.site, key: ++this.eventCount, time: new Date() });
    if (this.events.length > EVENTS) this.events.pop();
    return true;
  }

  takePicture(request, blob) {
    if (this.onPicture(request, blob)) return true;
    this.pictures.set(request, blob);
    if (this.pictures.size > MAX_PICTURES) this.pictures.delete(this.pictures.keys().next().value);
    return true;
  }

  picture(request) {
    const blob = this.pictures.get(request);
    this.pictures.delete(request);
    return blob;
  }

  takePlan(at, plan) {
    if (plan === null && !this.pipelines.has(key(at.site, at.pipeline))) return true;
    return this.pipeline(at.site, at.pipeline, (pipeline) => {
      pipeline.plan = plan;
      if (plan) { pipeline.model ||= plan.model; pipeline.revision ||= plan.revision; }
    });
  }

  takeDevice(at, message) {
    const where = key(at.site, at.device);
    if (message === null) {
      if (at.kind === "state") this.devices.delete(where);
      return true;
    }
    const make = () => ({ site: at.site, name: at.device, state: null, meta: null, report: null, reportAt: null });
    return bounded(this.devices, where, MAX_DEVICES, make, (device) => {
      device.stale = false;
      if (at.kind === "state") device.state = message.state;
      if (at.kind === "meta") device.meta = message;
      if (at.kind === "telemetry") { device.report = message; device.reportAt = clock(); }
    }, (device) => device.report !== null);
  }

  // While there is no connection, what was heard of devices is what they were, not what they are.
  disconnected() { for (const device of this.devices.values()) device.stale = true; }

  tally(now) {
    const second = Math.floor(now);
    const n = this.perSecond.length;
    if (second - this.perSecondAt > n) this.perSecondAt = Math.max(-1, second - n);
    while (this.perSecondAt < second) this.perSecond[++this.perSecondAt % n] = 0;
    this.perSecond[second % n] += 1;
  }

  // Results a second, over the last full seconds.
  rate() {
    const second = Math.floor(clock());
    const n = this.perSecond.length;
    let sum = 0;
    for (let back = 1; back < n; back++) {
      const k = second - back;
      if (k >= 0 && k <= this.perSecondAt && k > this.perSecondAt - n) sum += this.perSecond[k % n];
    }
    return sum / (n - 1);
  }

  // What ready boards reported on a pipeline: [{epoch, hash, waiting}].
  boards(site, pipeline) {
    const found = [];
    for (const device of this.devices.values()) {
      if (device.site !== site || device.state !== "ready" || device.stale) continue;
      const part = device.report?.pipelines.find((each) => each.pipeline === pipeline);
      if (part) found.push(part);
    }
    return found;
  }

  sites() {
    const sites = new Set();
    for (const each of [...this.pipelines.values(), ...this.devices.values()]) sites.add(each.site);
    return sites;
  }

  now() { return clock(); }
}

function key(...parts) { return parts.join("/"); }

function bounded(map, name, limit, make, change, works = () => false) {
  const fits = map.has(name) || map.size < limit;
  if (!fits) map.delete(silentLongest(map, works));
  const entry = map.get(name) ?? make();
  const made = change(entry) ?? entry;
  map.delete(name); // to stand at the end
  map.set(name, made);
  return fits;
}

// The entry that makes room: the one heard longest ago, and before it those of boards that never reported.
function silentLongest(map, works) {
  for (const [name, entry] of map) if (!works(entry)) return name;
  return map.keys().next().value;
}
