/**
 * The dense half of a packed model: a GGUF of its own with the original's metadata and every tensor that is no expert.
 *
 * Nothing is decoded or changed: metadata pairs and tensor bytes are copied as they stand, in the original's order, so
 * that any reader of GGUF reads it. Only the keys that say which part of a split set this is are left out, and offsets are
 * new. Tensors that this build does not use (MTP layers, vision) come along: a pack loses nothing.
 */
import { type Gguf, type GgufTensor, readAlignment } from '../model/gguf.ts';
import { DENSE_NAME } from '../model/packed.ts';
import type { Place } from '../model/places.ts';
import { roundUp } from '../pipeline/memory.ts';
import { isSplitKey } from './fingerprint.ts';

export interface DensePlan {
  readonly file: string;
  readonly header: Buffer;
  /** What follows the header, in order: a tensor and where it goes. */
  readonly copies: readonly { readonly tensor: Place; readonly offsetBytes: number }[];
  readonly sizeBytes: number;
}

export function planDense(gguf: Gguf, expertTensors: ReadonlySet<string>): DensePlan {
  const tensors = [...gguf.tensors.values()].filter((tensor) => !expertTensors.has(tensor.name));
  const { header, offsetsBytes, sizeBytes } = encodeGguf(gguf, tensors, isSplitKey);
  const copies = tensors.map((tensor, index) => ({ tensor, offsetBytes: offsetsBytes[index]! }));
  return { file: DENSE_NAME, header, copies, sizeBytes };
}

/** What a header needs to know of a tensor. */
type TensorShape = Pick<GgufTensor, 'name' | 'type' | 'shape' | 'byteLength'>;

/** The header of one file with these tensors and the original's metadata, and where each tensor goes in that file. */
export function encodeGguf(
  gguf: Gguf,
  tensors: readonly TensorShape[],
  leaveOut: (key: string) => boolean,
): { readonly header: Buffer; readonly offsetsBytes: readonly number[]; readonly sizeBytes: number } {
  const alignment = readAlignment(gguf.metadata);
  const keys = gguf.metadata.keys.filter((key) => !leaveOut(key));
  let dataBytes = 0;
  const relative = tensors.map((tensor) => {
    const offsetBytes = dataBytes;
    dataBytes += roundUp(tensor.byteLength, alignment);
    return offsetBytes;
  });
  const parts = [
    Buffer.from('GGUF'),
    u32(3),
    u64(tensors.length),
    u64(keys.length),
    ...keys.map((key) => gguf.metadata.pairBytes(key)),
    ...tensors.map((tensor, index) => tensorInfo(tensor, relative[index]!)),
  ];
  const unpadded = parts.reduce((sum, part) => sum + part.length, 0);
  const header = Buffer.concat(parts, roundUp(unpadded, alignment));
  return {
    header,
    offsetsBytes: relative.map((offset) => header.length + offset),
    sizeBytes: header.length + dataBytes,
  };
}

function tensorInfo(tensor: TensorShape, offsetBytes: number): Buffer {
  const name = Buffer.from(tensor.name);
  return Buffer.concat([
    u64(name.length),
    name,
    u32(tensor.shape.length),
    ...tensor.shape.map(u64),
    u32(tensor.type.id),
    u64(offsetBytes),
  ]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}
