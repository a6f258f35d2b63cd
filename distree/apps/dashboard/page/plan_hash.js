// By what boards tell the plan in force from all others: as distree/messages/plan.py has it. crypto.subtle is only there on
// pages that came by https, so SHA-256 (FIPS 180-4) is done here.

const DIGITS = 16;

const K = new Uint32Array(64), H = new Uint32Array(8);
// The first 32 bits of the fractional parts of the cube roots, and square roots, of the first primes.
for (let prime = 2, found = 0; found < 64; prime += 1) {
  let isPrime = true;
  for (let factor = 2; factor * factor <= prime; factor += 1) if (prime % factor === 0) isPrime = false;
  if (!isPrime) continue;
  if (found < 8) H[found] = (Math.sqrt(prime) % 1) * 2 ** 32;
  K[found] = (Math.cbrt(prime) % 1) * 2 ** 32;
  found += 1;
}

const rotated = (word, by) => (word >>> by) | (word << (32 - by));

function sha256(bytes) {
  const padded = new Uint8Array(((bytes.length + 72) >>> 6) << 6);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 4, bytes.length * 8);
  const state = H.slice(), w = new Uint32Array(64);
  for (let start = 0; start < padded.length; start += 64) {
    for (let k = 0; k < 16; k += 1) w[k] = view.getUint32(start + 4 * k);
    for (let k = 16; k < 64; k += 1) {
      const early = w[k - 15], late = w[k - 2];
      w[k] = w[k - 16] + (rotated(early, 7) ^ rotated(early, 18) ^ (early >>> 3)) + w[k - 7] +
        (rotated(late, 17) ^ rotated(late, 19) ^ (late >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let k = 0; k < 64; k += 1) {
      const one = (h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + K[k] + w[k]) >>> 0;
      const two = ((rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) >>> 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) >>> 0, c, b, a, (one + two) >>> 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, k) => { state[k] += word; });
  }
  return [...state].map((word) => word.toString(16).padStart(8, "0")).join("");
}

// `plan` has the fields of the message.
export function planHash(plan) {
  const unsigned = (numbers) => numbers.map((number) => number + 0);
  const content = MessagePack.encode([
    plan.pipeline, plan.model, plan.revision, plan.criterion, unsigned(plan.thresholds),
    plan.masked.map((row) => [row.missing, unsigned(row.thresholds)]), plan.audit_rate, unsigned(plan.rest_s),
  ], { forceIntegerToFloat: true });
  return sha256(content).slice(0, DIGITS);
}
