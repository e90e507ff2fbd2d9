/**
 * Where a matrix lies in files: one stretch of bytes, or three when its scales and biases stand apart.
 *
 * Invariant: `scales` and `biases` are there together, in matrices of affine types and in no others.
 */
export interface Place {
  readonly file: number;
  readonly offsetBytes: number;
  readonly byteLength: number;
}

/** The same of every expert of a layer: expert e is `e * strideBytes` further. */
export interface StridedPlace extends Place {
  readonly strideBytes: number;
}

/** A matrix: itself the place of its values, or of its codes. */
type WithSides<P extends Place> = P & { readonly scales?: P; readonly biases?: P };

/** The stretches of a matrix: one, or codes, scales and biases. */
export function partsOf<P extends Place>(matrix: WithSides<P>): readonly P[] {
  const { scales, biases } = matrix;
  return scales === undefined || biases === undefined ? [matrix] : [matrix, scales, biases];
}

/** All bytes of a matrix. */
export function bytesOf(matrix: WithSides<Place>): number {
  return partsOf<Place>(matrix).reduce((sum, part) => sum + part.byteLength, 0);
}

/** What a vector must go through to be what GGUF keeps; see workers/vector-change.ts. */
export type VectorChange = 'plus one' | 'minus exp';
