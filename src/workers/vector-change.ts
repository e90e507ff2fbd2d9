/**
 * Small vectors that a checkpoint keeps in another form than the backend takes them.
 *
 * The backend's form is GGUF's: norms multiply as they are, and a DeltaNet head's decay is -exp(A_log). Hugging Face keeps
 * norms less 1, and both it and MLX keep A_log. Done once when a model is loaded, in float32.
 */
import type { VectorChange } from '../model/places.ts';
import { loadCpu } from '../native.ts';

export const F32_ID = 0;

/** `count` values of `type`, changed, as the bytes of float32. */
export function changedVector(
  type: number,
  count: number,
  bytes: Uint8Array,
  change: VectorChange,
): Uint8Array {
  const values = new Float32Array(count);
  loadCpu().dequantize(type, bytes, values);
  for (let index = 0; index < count; index++) {
    const value = values[index]!;
    values[index] = change === 'plus one' ? value + 1 : -Math.exp(value);
  }
  return new Uint8Array(values.buffer);
}
