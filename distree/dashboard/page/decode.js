// What the broker delivers, read as distree/wire.py and distree/topics.py do: every length has a limit, every number is
// finite, and whatever does not fit is Refused. Nothing that leaves this file needs to be checked again.

export class Refused extends Error {}

const MAX_JSON_BYTES = 32 << 10;
const MAX_MSGPACK_BYTES = 256 << 10;
const MAX_THUMBNAIL_BYTES = 64 << 10;
const MAX_THUMBNAIL_SIDE = 128;
const MAX_MS = 3_600_000;
const MAX_STAGES = 32;
const MAX_BRANCHES = 64;
const MAX_HOPS = 32;
const MAX_PIPELINES = 64;
const MAX_COUNT = Number.MAX_SAFE_INTEGER;

const ID = /^[a-z0-9-]{1,32}$/;
// As Python's str.isprintable: no control, format, private or unassigned character, no space but the plain one.
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;
const REASONS = new Set(["confident", "last", "deadline", "fallback", "shed"]);
const STATES = new Set(["init", "ready", "draining", "disconnected", "lost"]);

const utf8 = new TextDecoder("utf-8", { fatal: true });
const limits = {
  maxStrLength: 4096, maxBinLength: MAX_THUMBNAIL_BYTES, maxArrayLength: 1024, maxMapLength: 1024, maxExtLength: 0,
};

function refuse(what) { throw new Refused(what); }

function text(value, limit = 64) {
  if (typeof value !== "string" || value.length > 2 * limit || UNPRINTABLE.test(value)) refuse("text");
  if (value.length > limit && [...value].length > limit) refuse("text");
  return value;
}
function id(value) { return typeof value === "string" && ID.test(value) ? value : refuse("id"); }
function count(value, limit = MAX_COUNT) {
  return Number.isSafeInteger(value) && value >= 0 && value <= limit ? value : refuse("count");
}
function number(value, low = 0, high = 1e15) {
  return typeof value === "number" && value >= low && value <= high ? value : refuse("number"); // NaN fails both
}
function flag(value) { return typeof value === "boolean" ? value : refuse("flag"); }
function word(value, words) { return words.has(value) ? value : refuse("word"); }
function list(value, limit) { return Array.isArray(value) && value.length <= limit ? value : refuse("list"); }
function map(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value) ? value : refuse("map");
}
function maybe(value, read, ...more) { return value === null ? null : read(value, ...more); }
function same(value, expected) { return value === expected ? value : refuse("not what its topic says"); }

// ---------------------------------------------------------------- topics

export function address(topic) {
  const parts = topic.split("/");
  const [root, version, site, family, name, kind, who] = parts;
  if (root !== "distree" || version !== "1" || !ID.test(site)) refuse("topic");
  if (parts.length === 4 && family === "orchestrator") return { kind: family, site };
  if (!ID.test(name)) refuse("topic");
  if (parts.length === 6 && family === "device") return { kind, site, device: name };
  if (parts.length === 6 && family === "pipeline") return { kind, site, pipeline: name };
  if (parts.length === 7 && family === "pipeline" && ID.test(who)) return { kind, site, pipeline: name, origin: who };
  return refuse("topic");
}

// ---------------------------------------------------------------- messages

function json(payload, schema) {
  if (payload.length > MAX_JSON_BYTES) refuse("size");
  const fields = map(JSON.parse(utf8.decode(payload)));
  return fields.schema === schema ? fields : refuse("schema");
}

function msgpack(payload, kind) {
  if (payload.length > MAX_MSGPACK_BYTES) refuse("size");
  const fields = map(MessagePack.decode(payload, limits));
  return fields.v === 1 && fields.kind === kind ? fields : refuse("kind");
}

function hop(value) {
  const fields = map(value);
  return {
    device: id(fields.device),
    stage: count(fields.stage, MAX_STAGES),
    queue: number(fields.queue_ms, 0, MAX_MS),
    compute: number(fields.compute_ms, 0, MAX_MS),
  };
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
  const fields = json(payload, "distree.result/1");
  const hops = list(fields.hops, MAX_HOPS).map(hop);
  return {
    request: text(fields.request),
    site: same(fields.site, at.site),
    pipeline: same(fields.pipeline, at.pipeline),
    origin: same(fields.origin, at.origin),
    input: text(fields.input, 512),
    label: maybe(fields.label, text),
    classId: maybe(fields.class_id, count),
    confidence: number(fields.confidence, 0, 1),
    exit: maybe(fields.exit, count, MAX_STAGES - 1),
    reason: word(fields.reason, REASONS),
    final: flag(fields.final),
    late: flag(fields.late),
    epoch: count(fields.epoch),
    model: text(fields.model),
    revision: text(fields.revision),
    missing: fields.missing === undefined ? 0 : list(fields.missing, MAX_BRANCHES).length,
    ...split(number(fields.latency_ms, 0, MAX_MS), hops),
  };
}

function state(payload, at) {
  const fields = json(payload, "distree.state/1");
  return { device: same(fields.device, at.device), boot: text(fields.boot), state: word(fields.state, STATES) };
}

function meta(payload, at) {
  const fields = json(payload, "distree.meta/1");
  return {
    device: same(fields.device, at.device),
    version: text(fields.version),
    runtime: text(fields.runtime, 128),
    machine: text(fields.machine),
    memoryMb: count(fields.memory_mb),
    stages: list(fields.stages, MAX_STAGES * MAX_PIPELINES).map((held) => ({
      pipeline: id(map(held).pipeline),
      stage: count(held.stage, MAX_STAGES),
      branch: held.branch === undefined ? null : count(held.branch, MAX_BRANCHES - 1),
    })),
    origins: list(fields.origins, MAX_PIPELINES).map((name) => text(name, 32)),
    fusers: fields.fusers === undefined ? [] : list(fields.fusers, MAX_PIPELINES).map((name) => text(name, 32)),
  };
}

function telemetry(payload, at) {
  const fields = msgpack(payload, "telemetry");
  return {
    device: same(fields.device, at.device),
    uptime: number(fields.uptime_s),
    rssBytes: count(fields.rss_bytes),
    deadLetters: count(fields.dead_letters),
    pipelines: list(fields.pipelines, MAX_PIPELINES).map((part) => ({
      pipeline: id(map(part).pipeline),
      epoch: count(part.epoch),
      revision: text(part.revision),
      waiting: list(part.stages, MAX_STAGES).reduce((sum, stage) => sum + count(map(stage).waiting), 0),
    })),
  };
}

function plan(payload, at) {
  const fields = msgpack(payload, "plan");
  return {
    pipeline: same(fields.pipeline, at.pipeline),
    epoch: count(fields.epoch),
    model: text(fields.model),
    revision: text(fields.revision),
    criterion: text(fields.criterion),
    thresholds: list(fields.thresholds, MAX_STAGES).map((value) => number(value, -1e300, 1e300)),
    auditRate: fields.audit_rate === undefined ? 0 : number(fields.audit_rate, 0, 1),
  };
}

function claim(payload) {
  const fields = json(payload, "distree.orchestrator/1");
  return { orchestrator: id(fields.orchestrator), running: flag(fields.running) };
}

// A picture as boards write it: one PNG whose data follow its header at once, so that there is no room for animation,
// profiles or text, and the size that its header states bounds what a decoder may have to do.
function thumbnail(payload) {
  if (payload.length > MAX_THUMBNAIL_BYTES + 256) refuse("size");
  const fields = msgpack(payload, "thumbnail");
  const png = fields.png;
  if (!(png instanceof Uint8Array) || png.length < 57 || png.length > MAX_THUMBNAIL_BYTES) refuse("picture");
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  const sides = [view.getUint32(16), view.getUint32(20)];
  const starts = view.getUint32(0) === 0x89504e47 && view.getUint32(4) === 0x0d0a1a0a &&
    view.getUint32(8) === 13 && view.getUint32(12) === 0x49484452 && view.getUint32(37) === 0x49444154;
  if (!starts || !sides.every((side) => side >= 1 && side <= MAX_THUMBNAIL_SIDE)) refuse("picture");
  return { request: text(fields.request), blob: new Blob([png], { type: "image/png" }) };
}

const READERS = { result, state, meta, telemetry, plan, orchestrator: claim, thumbnail };

// Retained messages that are taken back come once more, empty; null stands for them.
const RETAINED = new Set(["state", "meta", "plan", "orchestrator"]);

// Returns {at, message} of a delivery; Refused, and nothing else, for whatever else it is.
export function decode(topic, payload) {
  const at = address(topic);
  const read = Object.hasOwn(READERS, at.kind) ? READERS[at.kind] : refuse("kind");
  const needs = { result: "origin", thumbnail: "origin", plan: "pipeline", orchestrator: "site" }[at.kind] ?? "device";
  if (at[needs] === undefined || (at.origin !== undefined && needs !== "origin")) refuse("topic");
  if (payload.length === 0 && RETAINED.has(at.kind)) return { at, message: null };
  try {
    return { at, message: read(payload, at) };
  } catch (error) {
    throw error instanceof Refused ? error : new Refused("encoding");
  }
}
