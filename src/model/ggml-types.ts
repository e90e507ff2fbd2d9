/**
 * The ggml tensor types: number in the file, name, and how many bytes a block of how many values takes.
 *
 * Why: every length in this project (an expert's stride, a row, a tensor's end) follows from these two numbers, so they
 * stand in one table. Invariant: a row is a whole number of blocks, `rowBytes` refuses anything else.
 * The number behind it: one IQ3_XXS expert matrix of 1024 x 4096 is 16384 blocks x 98 B = 1,605,632 B, which is
 * 392 pages exactly.
 *
 * `supported` types can be computed with. The rest are known by name and size only, so that a file that carries one in a
 * tensor nobody reads still opens, and one that needs it is refused by name.
 */
import { MoestreamError } from '../errors.ts';

export interface GgmlType {
  readonly name: string;
  readonly id: number;
  /** Values in one block. */
  readonly blockSize: number;
  /** Bytes of one block. */
  readonly blockBytes: number;
  readonly supported: boolean;
  /** Of the types beyond ggml's, see affine-types.ts. */
  readonly affine?: { readonly bits: number; readonly group: number };
}

/** [id, name, values per block, bytes per block] */
type Row = readonly [id: number, name: string, blockSize: number, blockBytes: number];

const SUPPORTED: readonly Row[] = [
  [0, 'F32', 1, 4],
  [1, 'F16', 1, 2],
  [2, 'Q4_0', 32, 18],
  [3, 'Q4_1', 32, 20],
  [6, 'Q5_0', 32, 22],
  [7, 'Q5_1', 32, 24],
  [8, 'Q8_0', 32, 34],
  [10, 'Q2_K', 256, 84],
  [11, 'Q3_K', 256, 110],
  [12, 'Q4_K', 256, 144],
  [13, 'Q5_K', 256, 176],
  [14, 'Q6_K', 256, 210],
  [16, 'IQ2_XXS', 256, 66],
  [17, 'IQ2_XS', 256, 74],
  [18, 'IQ3_XXS', 256, 98],
  [20, 'IQ4_NL', 32, 18],
  [21, 'IQ3_S', 256, 110],
  [22, 'IQ2_S', 256, 82],
  [23, 'IQ4_XS', 256, 136],
  [30, 'BF16', 1, 2],
  [39, 'MXFP4', 32, 17],
];

/** Ids 4, 5, 31 to 33 and 36 to 38 were taken out of the format and stand for nothing. */
const NAMED_ONLY: readonly Row[] = [
  [9, 'Q8_1', 32, 36],
  [15, 'Q8_K', 256, 292],
  [19, 'IQ1_S', 256, 50],
  [24, 'I8', 1, 1],
  [25, 'I16', 1, 2],
  [26, 'I32', 1, 4],
  [27, 'I64', 1, 8],
  [28, 'F64', 1, 8],
  [29, 'IQ1_M', 256, 56],
  [34, 'TQ1_0', 256, 54],
  [35, 'TQ2_0', 256, 66],
  [40, 'NVFP4', 64, 36],
  [41, 'Q1_0', 128, 18],
  [42, 'Q2_0', 64, 18],
];

function table(): ReadonlyMap<number, GgmlType> {
  const types = new Map<number, GgmlType>();
  const add = (rows: readonly Row[], supported: boolean): void => {
    for (const [id, name, blockSize, blockBytes] of rows) {
      types.set(id, Object.freeze({ name, id, blockSize, blockBytes, supported }));
    }
  };
  add(SUPPORTED, true);
  add(NAMED_ONLY, false);
  return types;
}

/** Every type of the format by its id, supported or not. */
export const GGML_TYPES: ReadonlyMap<number, GgmlType> = table();

/** The types that can be computed with. */
export const SUPPORTED_TYPE_IDS: readonly number[] = SUPPORTED.map(([id]) => id);

/** The type of that number, of a tensor that has passed the checks; so an unknown one is our bug. */
export function ggmlType(id: number): GgmlType {
  const type = GGML_TYPES.get(id);
  if (type === undefined) throw new MoestreamError('INTERNAL', `no ggml type has the number ${id}`);
  return type;
}

const BY_NAME: ReadonlyMap<string, GgmlType> = new Map(
  [...GGML_TYPES.values()].map((type) => [type.name, type]),
);

/** `IQ3_XXS` for 18, `type 99` for a number the format does not define. */
export function ggmlTypeName(id: number): string {
  return GGML_TYPES.get(id)?.name ?? `type ${id}`;
}

/** The type of that name; for code and tests that write names, so an unknown one is our bug. */
export function ggmlTypeNamed(name: string): GgmlType {
  const type = BY_NAME.get(name);
  if (type === undefined) throw new MoestreamError('INTERNAL', `no ggml type is called ${name}`);
  return type;
}

/** Bytes of one row of `cols` values. Throws MODEL_INVALID when a row is not a whole number of blocks. */
export function rowBytes(type: GgmlType, cols: number): number {
  if (!Number.isSafeInteger(cols) || cols < 1 || cols % type.blockSize !== 0) {
    throw new MoestreamError(
      'MODEL_INVALID',
      `a row of ${cols} values is not a whole number of ${type.name} blocks of ${type.blockSize}`,
    );
  }
  return (cols / type.blockSize) * type.blockBytes;
}
