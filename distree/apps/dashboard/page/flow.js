// What results came to over the last minute, in memory of a fixed size: counts for each second, exact at any rate, and
// the times of the newest for medians.

const SECONDS = 60;
const SAMPLES = 256;
const PARTS = ["latency", "queue", "compute", "network"];

function median(values) {
  return values.sort()[Math.floor((values.length - 1) / 2)];
}

class Exit {
  constructor() {
    this.second = new Float64Array(SECONDS).fill(-1);
    this.count = new Float64Array(SECONDS);
    this.at = new Float64Array(SAMPLES).fill(-Infinity);
    for (const part of PARTS) this[part] = new Float64Array(SAMPLES);
    this.next = 0;
  }

  add(now, result) {
    const second = Math.floor(now), k = second % SECONDS;
    if (this.second[k] !== second) {
      this.second[k] = second;
      this.count[k] = 0;
    }
    this.count[k] += 1;
    this.at[this.next] = now;
    for (const part of PARTS) this[part][this.next] = result[part];
    this.next = (this.next + 1) % SAMPLES;
  }

  // {count}, and the median of each part of the latency where there is one.
  summary(now) {
    const since = Math.floor(now) - SECONDS;
    const count = this.count.reduce((sum, value, k) => sum + (this.second[k] > since ? value : 0), 0);
    if (count === 0 || !this.at.some((at) => at > now - SECONDS)) return { count };
    const medians = PARTS.map((part) => [part, median(this[part].filter((_, k) => this.at[k] > now - SECONDS))]);
    return { count, ...Object.fromEntries(medians) };
  }
}

export class Flow {
  constructor() { this.exits = new Map(); }

  // `now` is in seconds of a clock that never steps back.
  add(now, result) {
    const key = result.exit ?? -1; // -1: nothing could be computed in time
    let exit = this.exits.get(key);
    if (!exit) this.exits.set(key, (exit = new Exit()));
    exit.add(now, result);
  }

  // Returns [{exit, count, share, latency, queue, compute, network}] by exit, times in ms, for exits 0 to `exits` - 1
  // and for whatever else was taken.
  summary(now, exits) {
    const keys = new Set(this.exits.keys());
    for (let k = 0; k < exits; k++) keys.add(k);
    const none = { count: 0, latency: null, queue: 0, compute: 0, network: 0 };
    const rows = [...keys].sort((a, b) => (a < 0) - (b < 0) || a - b)
      .map((exit) => ({ ...none, exit, ...this.exits.get(exit)?.summary(now) }))
      .filter((row) => row.exit >= 0 || row.count > 0);
    const all = rows.reduce((sum, row) => sum + row.count, 0);
    return rows.map((row) => ({ ...row, share: all ? row.count / all : 0 }));
  }
}
