// What the broker delivers, read as distree/messages and distree/topics.py do: fields, forms and limits come from the same
// declarations, by declared.js, and whatever does not fit is Refused. Nothing that leaves this file needs to be checked
// again.

import { MESSAGES } from "./declared.js";
import { planHash } from "./plan_hash.js";

export class Refused extends Error {}

// The page's own limits, below those of messages: what it reads is small.
const MAX_JSON_BYTES = 32 << 10;
const MAX_MSGPACK_BYTES = 256 << 10;
const MAX_PICTURE_BYTES = 64 << 10;
const MAX_THUMBNAIL_SIDE = 128;

const ID = /^[a-z0-9-]{1,32}$/;
// As Python's str.isprintable: no control, format, private or unassigned character, no space but the plain one.
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

const utf8 = new TextDecoder("utf-8", { fatal: true });
const limits = {
  maxStrLength: 4096, maxBinLength: MAX_PICTURE_BYTES, maxArrayLength: 1024, maxMapLength: 1024, maxExtLength: 0,
};

function refuse(what) { throw new Refused(what); }
function same(value, expected) { return value === expected ? value : refuse("not what its topic says"); }

// ---------------------------------------------------------------- what a value can be

const FORMS = {
  text(value, most) {
    if (typeof value !== "string" || value.length > 2 * most || UNPRINTABLE.test(value)) refuse("text");
    if (value.length > most && [...value].length > most) refuse("text");
    return value;
  },
  id(value) { return typeof value === "string" && ID.test(value) ? value : refuse("id"); },
  count(value, least, most) {
    return Number.isSafeInteger(value) && value >= least && value <= most ? value : refuse("count");
  },
  number(value, least, most) {
    return typeof value === "number" && value >= least && value <= most ? value : refuse("number"); // NaN fails both
  },
  word(value, words) { return words.includes(value) ? value : refuse("word"); },
  flag(value) { return typeof value === "boolean" ? value : refuse("flag"); },
  bytes(value, least, most) {
    return value instanceof Uint8Array && value.length >= least && value.length <= most ? value : refuse("bytes");
  },
  list(value, item, least, most) {
    if (!Array.isArray(value) || value.length < least || value.length > most) refuse("list");
    return value.map((each) => read(item, each));
  },
  tally(value, words, most) {
    return Object.fromEntries(Object.entries(map(value)).map(([word, count]) => [
      FORMS.word(word, words), FORMS.count(count, 0, most),
    ]));
  },
  map(value, fields) {
    map(value);
    const made = {};
    for (const field of fields) {
      const { name } = field;
      made[name] = Object.hasOwn(value, name) ? given(field, value[name]) : absent(field);
    }
    return made;
  },
  // A later version may have appended some, and those that hold their default may be left out at the end.
  row(value, fields) {
    if (!Array.isArray(value)) refuse("row");
    const made = {};
    fields.forEach((field, k) => { made[field.name] = k < value.length ? given(field, value[k]) : absent(field); });
    return made;
  },
};

function read(form, value) { return FORMS[form[0]](value, form[1], form[2], form[3]); }
function given(field, value) { return field.nullable && value === null ? null : read(field.form, value); }
function absent(field) { return Object.hasOwn(field, "absent") ? field.absent : refuse(`no ${field.name}`); }
function map(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value) ? value : refuse("map");
}

// ---------------------------------------------------------------- topics

export function address(topic) {
  const parts = topic.split("/");
  const [root, version, site, family, name, kind, who] = parts;
  if (root !== "distree" || version !== "1" || !ID.test(site)) refuse("topic");
  if (parts.length === 4 && family === "orchestrator") return { kind: family, site };
  if (parts.length === 4 && family === "site-event") return { kind: family, site };
  if (!ID.test(name)) refuse("topic");
  if (parts.length === 6 && family === "device") return { kind, site, device: name };
  if (parts.length === 6 && family === "pipeline") return { kind, site, pipeline: name };
  if (parts.length === 7 && family === "pipeline" && ID.test(who)) return { kind, site, pipeline: name, origin: who };
  return refuse("topic");
}

// ---------------------------------------------------------------- messages

function json(payload, { word, fields }) {
  if (payload.length > MAX_JSON_BYTES) refuse("size");
  const value = map(JSON.parse(utf8.decode(payload)));
  return value.schema === word ? FORMS.map(value, fields) : refuse("schema");
}

function msgpack(payload, { word, version, fields }) {
  if (payload.length > MAX_MSGPACK_BYTES) refuse("size");
  const value = map(MessagePack.decode(payload, limits));
  return value.v === version && value.kind === word ? FORMS.map(value, fields) : refuse("kind");
}

// Where the time went, in ms. Branches of one stage work at the same time: the slowest of them counts. What is neither
// queue nor compute is the way between boards: broker, network, coding, and the fusion of branches.
function split(latency, hops) {
  const slowest = new Map();
  for (const each of hops) {
    const other = slowest.get(each.stage);
    if (!other || each.queue + each.compute > other.queue + other.compute) slowest.set(each.stage, each);
  }
  let queue = 0, compute = 0;
  for (const each of slowest.values()) { queue += each.queue; compute += each.compute; }
  return { latency, queue, compute, network: Math.max(0, latency - queue - compute) };
}

function result(payload, at) {
  const fields = json(payload, MESSAGES.result);
  const hops = fields.hops.map((hop) => ({ stage: hop.stage, queue: hop.queue_ms, compute: hop.compute_ms }));
  return {
    request: fields.request,
    site: same(fields.site, at.site),
    pipeline: same(fields.pipeline, at.pipeline),
    origin: same(fields.origin, at.origin),
    input: fields.input,
    label: fields.label,
    classId: fields.class_id,
    confidence: fields.confidence,
    exit: fields.exit,
    reason: fields.reason,
    final: fields.final,
    late: fields.late,
    epoch: fields.epoch,
    model: fields.model,
    revision: fields.revision,
    missing: fields.missing,
    ...split(fields.latency_ms, hops),
  };
}

function state(payload, at) {
  const fields = json(payload, MESSAGES.state);
  return { device: same(fields.device, at.device), boot: fields.boot, state: fields.state };
}

function meta(payload, at) {
  const fields = json(payload, MESSAGES.meta);
  return {
    device: same(fields.device, at.device),
    version: fields.version,
    runtime: fields.runtime,
    machine: fields.machine,
    memoryMb: fields.memory_mb,
    stages: fields.stages.map(({ pipeline, stage, branch }) => ({ pipeline, stage, branch })),
    origins: fields.origins,
    fusers: fields.fusers,
  };
}

function telemetry(payload, at) {
  const fields = msgpack(payload, MESSAGES.telemetry);
  return {
    device: same(fields.device, at.device),
    uptime: fields.uptime_s,
    rssBytes: fields.rss_bytes,
    deadLetters: fields.dead_letters,
    pipelines: fields.pipelines.map(({ pipeline, epoch, plan_hash: hash, stages }) => ({
      pipeline, epoch, hash, waiting: stages.reduce((sum, stage) => sum + stage.waiting, 0),
    })),
  };
}

function plan(payload, at) {
  const fields = msgpack(payload, MESSAGES.plan);
  return {
    pipeline: same(fields.pipeline, at.pipeline),
    epoch: fields.epoch,
    model: fields.model,
    revision: fields.revision,
    criterion: fields.criterion,
    thresholds: fields.thresholds,
    auditRate: fields.audit_rate,
    hash: planHash(fields),
  };
}

function claim(payload) {
  const { orchestrator, running } = json(payload, MESSAGES.orchestrator);
  return { orchestrator, running };
}

function event(payload) {
  const { device, kind, severity, pipeline, what, remedy, unsaid } = json(payload, MESSAGES.event);
  return { device, kind, severity, pipeline, what, remedy, unsaid };
}

// What a board tells is about itself; what the orchestrator tells is about any board, or about none.
function ownEvent(payload, at) {
  const told = event(payload);
  same(told.device, at.device);
  return told;
}

// A picture as boards write it: one PNG whose data follow its header at once, so that there is no room for animation,
// profiles or text, and the size that its header states bounds what a decoder may have to do.
function thumbnail(payload) {
  if (payload.length > MAX_PICTURE_BYTES + 256) refuse("size");
  const { request, png } = msgpack(payload, MESSAGES.thumbnail);
  if (png.length < 57) refuse("picture");
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  const sides = [view.getUint32(16), view.getUint32(20)];
  const starts = view.getUint32(0) === 0x89504e47 && view.getUint32(4) === 0x0d0a1a0a &&
    view.getUint32(8) === 13 && view.getUint32(12) === 0x49484452 && view.getUint32(37) === 0x49444154;
  if (!starts || !sides.every((side) => side >= 1 && side <= MAX_THUMBNAIL_SIDE)) refuse("picture");
  return { request, blob: new Blob([png], { type: "image/png" }) };
}

const READERS = { result, state, meta, telemetry, plan, orchestrator: claim, thumbnail, event: ownEvent, "site-event": event };

// Retained messages that are taken back come once more, empty; null stands for them.
const RETAINED = new Set(["state", "meta", "plan", "orchestrator"]);

// Returns {at, message} of a delivery; Refused, and nothing else, for whatever else it is.
export function decode(topic, payload) {
  const at = address(topic);
  const read = Object.hasOwn(READERS, at.kind) ? READERS[at.kind] : refuse("kind");
  const needs = { result: "origin", thumbnail: "origin", plan: "pipeline", orchestrator: "site", "site-event": "site" }[at.kind] ?? "device";
  if (at[needs] === undefined || (at.origin !== undefined && needs !== "origin")) refuse("topic");
  if (payload.length === 0 && RETAINED.has(at.kind)) return { at, message: null };
  try {
    return { at, message: read(payload, at) };
  } catch (error) {
    throw error instanceof Refused ? error : new Refused("encoding");
  }
}
