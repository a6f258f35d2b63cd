// Written by `make api` from the declarations of messages: changes here are lost.

// Of each kind: the word and version by which bytes say what they are, and the form of each field.
export const MESSAGES = {
  result: {
    word: "distree.result/1",
    fields: [
      {"name": "request", "form": ["text", 64]},
      {"name": "site", "form": ["text", 32]},
      {"name": "pipeline", "form": ["id"]},
      {"name": "origin", "form": ["id"]},
      {"name": "input", "form": ["text", 512]},
      {"name": "label", "form": ["text", 64], "nullable": true},
      {"name": "class_id", "form": ["count", 0, 1048576], "nullable": true},
      {"name": "confidence", "form": ["number", 0.0, 1.0]},
      {"name": "exit", "form": ["count", 0, 31], "nullable": true},
      {"name": "reason", "form": ["word", ["confident", "deadline", "fallback", "last", "shed"]]},
      {"name": "final", "form": ["flag"]},
      {"name": "late", "form": ["flag"]},
      {"name": "attempt", "form": ["count", 0, 100]},
      {"name": "latency_ms", "form": ["number", 0.0, 1000000000000000.0]},
      {"name": "epoch", "form": ["count", 0, 1000000]},
      {"name": "model", "form": ["text", 64]},
      {"name": "revision", "form": ["text", 64]},
      {"name": "hops", "form": ["list", ["map", [{"name": "device", "form": ["id"]}, {"name": "stage", "form": ["count", 0, 31]}, {"name": "queue_ms", "form": ["number", 0.0, 3600000.0]}, {"name": "compute_ms", "form": ["number", 0.0, 3600000.0]}]], 0, 32]},
      {"name": "missing", "form": ["list", ["map", [{"name": "branch", "form": ["count", 0, 63]}, {"name": "device", "form": ["text", 32], "nullable": true}]], 0, 64], "absent": []},
    ],
  },
  state: {
    word: "distree.state/1",
    fields: [
      {"name": "device", "form": ["id"]},
      {"name": "boot", "form": ["text", 64]},
      {"name": "state", "form": ["word", ["init", "ready", "draining", "disconnected", "lost"]]},
    ],
  },
  meta: {
    word: "distree.meta/1",
    fields: [
      {"name": "device", "form": ["id"]},
      {"name": "boot", "form": ["text", 64]},
      {"name": "version", "form": ["text", 64]},
      {"name": "python", "form": ["text", 64]},
      {"name": "runtime", "form": ["text", 128]},
      {"name": "machine", "form": ["text", 64]},
      {"name": "memory_mb", "form": ["count", 0, 9007199254740992]},
      {"name": "stages", "form": ["list", ["map", [{"name": "pipeline", "form": ["id"]}, {"name": "stage", "form": ["count", 0, 31]}, {"name": "model", "form": ["text", 64]}, {"name": "revision", "form": ["text", 64]}, {"name": "branch", "form": ["count", 0, 63], "absent": null}]], 0, 2048]},
      {"name": "origins", "form": ["list", ["text", 32], 0, 64]},
      {"name": "fusers", "form": ["list", ["text", 32], 0, 64], "absent": []},
      {"name": "inputs", "form": ["list", ["map", [{"name": "pipeline", "form": ["id"]}, {"name": "source", "form": ["text", 64]}, {"name": "model", "form": ["text", 64]}, {"name": "revision", "form": ["text", 64]}, {"name": "dtype", "form": ["text", 64]}, {"name": "shape", "form": ["list", ["count", 1, 1048576], 0, 6]}]], 0, 64], "absent": []},
    ],
  },
  telemetry: {
    word: "telemetry",
    version: 1,
    fields: [
      {"name": "device", "form": ["id"]},
      {"name": "boot", "form": ["text", 64]},
      {"name": "sequence", "form": ["count", 0, 9007199254740992]},
      {"name": "uptime_s", "form": ["number", 0.0, 1000000000000.0]},
      {"name": "rss_bytes", "form": ["count", 0, 9007199254740992]},
      {"name": "dead_letters", "form": ["count", 0, 9007199254740992]},
      {"name": "offline_dropped", "form": ["count", 0, 9007199254740992]},
      {"name": "pipelines", "form": ["list", ["map", [{"name": "pipeline", "form": ["id"]}, {"name": "epoch", "form": ["count", 0, 1000000]}, {"name": "plan_hash", "form": ["text", 16]}, {"name": "revision", "form": ["text", 64]}, {"name": "stages", "form": ["list", ["map", [{"name": "stage", "form": ["count", 0, 31]}, {"name": "received", "form": ["count", 0, 9007199254740992]}, {"name": "exited", "form": ["count", 0, 9007199254740992]}, {"name": "forwarded", "form": ["count", 0, 9007199254740992]}, {"name": "shed", "form": ["count", 0, 9007199254740992]}, {"name": "expired", "form": ["count", 0, 9007199254740992]}, {"name": "failed", "form": ["count", 0, 9007199254740992]}, {"name": "duplicate", "form": ["count", 0, 9007199254740992]}, {"name": "waiting", "form": ["count", 0, 9007199254740992]}, {"name": "bytes_out", "form": ["count", 0, 9007199254740992]}, {"name": "queue_s", "form": ["number", 0.0, 1000000000000.0]}, {"name": "compute_s", "form": ["number", 0.0, 1000000000000.0]}, {"name": "wasted", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "audited", "form": ["count", 0, 9007199254740992], "absent": 0}]], 0, 32]}, {"name": "origin", "form": ["map", [{"name": "accepted", "form": ["count", 0, 9007199254740992]}, {"name": "answered", "form": ["count", 0, 9007199254740992]}, {"name": "resent", "form": ["count", 0, 9007199254740992]}, {"name": "late", "form": ["count", 0, 9007199254740992]}, {"name": "pending", "form": ["count", 0, 9007199254740992]}, {"name": "exits", "form": ["list", ["count", 0, 9007199254740992], 0, 32]}, {"name": "reasons", "form": ["tally", ["confident", "deadline", "fallback", "last", "shed"], 9007199254740992]}, {"name": "latency_p50_s", "form": ["number", 0.0, 1000000000000.0]}, {"name": "latency_p95_s", "form": ["number", 0.0, 1000000000000.0]}, {"name": "latency_max_s", "form": ["number", 0.0, 1000000000000.0]}, {"name": "audits_drawn", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "audits_lost", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "shed", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "dropped", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "unspooled", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "members", "form": ["count", 0, 9007199254740992], "absent": 0}, {"name": "left_out", "form": ["count", 0, 9007199254740992], "absent": 0}]], "nullable": true}, {"name": "fusions", "form": ["list", ["map", [{"name": "stage", "form": ["count", 0, 31]}, {"name": "fused", "form": ["count", 0, 9007199254740992]}, {"name": "exited", "form": ["count", 0, 9007199254740992]}, {"name": "forwarded", "form": ["count", 0, 9007199254740992]}, {"name": "failed", "form": ["count", 0, 9007199254740992]}, {"name": "expired", "form": ["count", 0, 9007199254740992]}, {"name": "late", "form": ["count", 0, 9007199254740992]}, {"name": "missing", "form": ["list", ["count", 0, 9007199254740992], 0, 64]}, {"name": "audited", "form": ["count", 0, 9007199254740992], "absent": 0}]], 0, 32], "absent": []}]], 0, 64]},
    ],
  },
  plan: {
    word: "plan",
    version: 1,
    fields: [
      {"name": "pipeline", "form": ["id"]},
      {"name": "epoch", "form": ["count", 1, 1000000]},
      {"name": "model", "form": ["text", 64]},
      {"name": "revision", "form": ["text", 64]},
      {"name": "criterion", "form": ["text", 64]},
      {"name": "thresholds", "form": ["list", ["number", -1e+300, 1e+300], 0, 32]},
      {"name": "masked", "form": ["list", ["row", [{"name": "missing", "form": ["list", ["count", 0, 63], 1, 64]}, {"name": "thresholds", "form": ["list", ["number", -1e+300, 1e+300], 0, 32]}]], 0, 256], "absent": []},
      {"name": "audit_rate", "form": ["number", 0.0, 1.0], "absent": 0.0},
      {"name": "rest_s", "form": ["list", ["number", 0.0, 3600.0], 0, 32], "absent": []},
      {"name": "reason", "form": ["text", 64], "absent": ""},
      {"name": "author", "form": ["text", 64], "absent": ""},
    ],
  },
  orchestrator: {
    word: "distree.orchestrator/1",
    fields: [
      {"name": "orchestrator", "form": ["id"]},
      {"name": "running", "form": ["flag"]},
    ],
  },
  thumbnail: {
    word: "thumbnail",
    version: 1,
    fields: [
      {"name": "request", "form": ["text", 64]},
      {"name": "png", "form": ["bytes", 0, 65536]},
    ],
  },
};
