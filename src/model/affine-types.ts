/**
 * MLX's affine types: value = code * scale + bias, with one scale and one bias (bfloat16) for a group of values.
 *
 * A matrix of such a type is three tensors: codes (packed low bits first, without gaps), scales and biases, each in row
 * order. Their ids are this project's own and lie beyond ggml's, which are below 256; native/cpu/tensor_type.h has the same
 * formula. `blockBytes` counts all three, so sizes follow from `rowBytes` as with any other type; `affineBytes` takes them
 * apart. The number behind it: 1024 x 4096 at 4 bits in groups of 64 are 2,097,152 + 131,072 + 131,072 bytes.
 */
import { GGML_TYPES, type GgmlType, ggmlType } from './ggml-types.ts';

export const AFFINE_BITS = [2, 3, 4, 5, 6, 8] as const;
export const AFFINE_GROUPS = [32, 64, 128] as const;

const FIRST_ID = 256;
/** A bfloat16. */
const FACTOR_BYTES = 2;

function makeType(bits: number, group: number): GgmlType {
  return Object.freeze({
    name: `AFFINE${bits}_G${group}`,
    id: FIRST_ID + 4 * bits + Math.log2(group / 32),
    blockSize: group,
    blockBytes: (group * bits) / 8 + 2 * FACTOR_BYTES,
    supported: true,
    affine: { bits, group },
  });
}

const TYPES: readonly GgmlType[] = AFFINE_BITS.flatMap((bits) =>
  AFFINE_GROUPS.map((group) => makeType(bits, group)),
);

const BY_NAME: ReadonlyMap<string, GgmlType> = new Map(
  [...GGML_TYPES.values(), ...TYPES].map((type) => [type.name, type]),
);

const BY_ID: ReadonlyMap<number, GgmlType> = new Map(TYPES.map((type) => [type.id, type]));

export const AFFINE_TYPE_IDS: readonly number[] = [...BY_ID.keys()];

/** The type of that number, of either kind, of a tensor that has passed the checks; so an unknown one is our bug. */
export function tensorType(id: number): GgmlType {
  return BY_ID.get(id) ?? ggmlType(id);
}

/** Undefined for parameters that no kernel knows. */
export function affineType(bits: number, group: number): GgmlType | undefined {
  return TYPES.find(({ affine }) => affine?.bits === bits && affine.group === group);
}

/** A type of either kind by its name. */
export function tensorTypeNamed(name: string): GgmlType | undefined {
  return BY_NAME.get(name);
}

/** The bytes of the three tensors of a matrix of so many values; scales and biases have as many each. */
export function affineBytes(type: GgmlType, values: number): { codes: number; side: number } {
  const { bits, group } = type.affine!;
  return { codes: (values / 8) * bits, side: (values / group) * FACTOR_BYTES };
}
