/** How many bytes so many values of a type take: in one stretch, or in codes, scales and biases. */
import { affineBytes } from '../model/affine-types.ts';
import type { GgmlType } from '../model/ggml-types.ts';

export function partBytes(type: GgmlType, values: number): readonly number[] {
  if (type.affine === undefined) return [(values / type.blockSize) * type.blockBytes];
  const { codes, side } = affineBytes(type, values);
  return [codes, side, side];
}
