/**
 * Rounding float32 to the two 16-bit formats, to nearest with ties to even.
 *
 * Why here: Node 20 has no Float16Array. Scales of the K and IQ formats are small, 1e-5 for a row of 4096 values, which
 * is below the smallest normal half (6.1e-5): subnormal halves are the rule here, not a corner.
 */
const SMALLEST_NORMAL_HALF = 2 ** -14;
const SUBNORMALS_PER_ONE = 2 ** 24;
/** From here on the nearest half is infinity. */
const HALF_OVERFLOW = 65520;

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

function bitsOf(value: number): number {
  float[0] = value;
  return bits[0]!;
}

/** Drops the low bits of a float32 pattern, rounding; a carry into the exponent is the right result. */
function roundOff(pattern: number, droppedBits: number): number {
  const kept = pattern >>> droppedBits;
  const rest = pattern & ((1 << droppedBits) - 1);
  const tie = 1 << (droppedBits - 1);
  return rest > tie || (rest === tie && (kept & 1) === 1) ? kept + 1 : kept;
}

export function toHalf(value: number): number {
  const pattern = bitsOf(value);
  const sign = (pattern >>> 16) & 0x8000;
  const magnitude = Math.abs(value);
  if (magnitude >= HALF_OVERFLOW) return sign | 0x7c00;
  if (magnitude < SMALLEST_NORMAL_HALF) {
    const scaled = magnitude * SUBNORMALS_PER_ONE;
    const below = Math.floor(scaled);
    const up = scaled - below > 0.5 || (scaled - below === 0.5 && (below & 1) === 1);
    return sign | (up ? below + 1 : below);
  }
  // Exponent bias 127 becomes 15: 112 less, at float32's exponent position.
  return sign | roundOff((pattern & 0x7fffffff) - (112 << 23), 13);
}

export function toBfloat(value: number): number {
  return roundOff(bitsOf(value), 16);
}
