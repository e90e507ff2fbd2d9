/**
 * Values from one type to another, on a thread of its own: blocks in, blocks out, and what was lost.
 *
 * A task is a few million values; they pass through float32 a part at a time, so a thread holds 4 MB of floats whatever
 * the task. The loss is the squared error against the values as they were stored, over their squares.
 */
import { MoestreamError } from '../errors.ts';
import { tensorTypeNamed } from '../model/affine-types.ts';
import type { GgmlType } from '../model/ggml-types.ts';
import { loadCpu } from '../native.ts';
import { partBytes } from './parts.ts';

export interface ConvertTask {
  readonly from: string;
  readonly to: string;
  readonly values: number;
  /** One stretch of blocks, or codes, scales and biases. */
  readonly parts: readonly Uint8Array[];
}

export interface Converted {
  readonly parts: readonly Uint8Array[];
  readonly errorSquares: number;
  readonly squares: number;
}

/** A multiple of every block. */
const SLICE_VALUES = 1 << 20;

export default function convert(task: ConvertTask): Converted {
  const from = tensorTypeNamed(task.from)!;
  const to = tensorTypeNamed(task.to)!;
  const cpu = loadCpu();
  const parts = partBytes(to, task.values).map((length) => new Uint8Array(length));
  let errorSquares = 0;
  let squares = 0;
  for (let at = 0; at < task.values; at += SLICE_VALUES) {
    const count = Math.min(SLICE_VALUES, task.values - at);
    const values = new Float32Array(count);
    cpu.dequantize(from.id, joined(from, task.parts, at, count), values);
    let sum = 0;
    for (let index = 0; index < count; index++) sum += values[index]! ** 2;
    if (!Number.isFinite(sum)) {
      throw new MoestreamError('MODEL_INVALID', `a ${from.name} block holds a value that is not finite`);
    }
    squares += sum;
    const blocks = new Uint8Array(partBytes(to, count).reduce((sum, length) => sum + length, 0));
    cpu.quantize(to.id, values, blocks);
    spread(to, blocks, parts, at, count);
    const after = new Float32Array(count);
    cpu.dequantize(to.id, blocks, after);
    for (let index = 0; index < count; index++) {
      errorSquares += (values[index]! - after[index]!) ** 2;
    }
  }
  return { parts, errorSquares, squares };
}

/** `count` values from value `at` on, their stretches one behind the other. */
function joined(type: GgmlType, parts: readonly Uint8Array[], at: number, count: number): Uint8Array {
  const starts = partBytes(type, at);
  const lengths = partBytes(type, count);
  if (parts.length === 1) return parts[0]!.subarray(starts[0], starts[0]! + lengths[0]!);
  return Buffer.concat(
    parts.map((part, index) => part.subarray(starts[index], starts[index]! + lengths[index]!)),
  );
}

function spread(
  type: GgmlType,
  blocks: Uint8Array,
  parts: readonly Uint8Array[],
  at: number,
  count: number,
): void {
  const starts = partBytes(type, at);
  let from = 0;
  for (const [index, length] of partBytes(type, count).entries()) {
    parts[index]!.set(blocks.subarray(from, from + length), starts[index]!);
    from += length;
  }
}
