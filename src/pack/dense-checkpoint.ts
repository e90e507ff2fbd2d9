/**
 * The dense half of a packed checkpoint: one safetensors file with every tensor that is no expert, and the texts.
 *
 * As with a GGUF nothing is decoded or changed and nothing is lost: tensors keep their names, types, shapes and bytes, in
 * the original's order, without gaps, so that any reader of safetensors reads it. Configuration and tokenizer are copied.
 */
import type { Checkpoint, StoredTensor } from '../model/checkpoint.ts';
import { DENSE_CHECKPOINT_NAME } from '../model/packed.ts';
import type { DensePlan } from './dense-gguf.ts';

/** `expertTensors` are GGUF's names. */
export function planDenseCheckpoint(checkpoint: Checkpoint, expertTensors: ReadonlySet<string>): DensePlan {
  const experts = new Set([...expertTensors].flatMap((name) => checkpoint.madeOf.get(name) ?? []));
  const tensors = checkpoint.stored.filter(({ name }) => !experts.has(name));
  const header = encodeSafetensors(tensors);
  let offsetBytes = header.length;
  const copies = tensors.map((tensor) => {
    const copy = { tensor, offsetBytes };
    offsetBytes += tensor.byteLength;
    return copy;
  });
  return { file: DENSE_CHECKPOINT_NAME, header, copies, sizeBytes: offsetBytes };
}

/** The header of one safetensors file with these tensors one behind the other. */
export function encodeSafetensors(
  tensors: readonly Pick<StoredTensor, 'name' | 'dtype' | 'shape' | 'byteLength'>[],
): Buffer {
  let dataBytes = 0;
  const entries = tensors.map(({ name, dtype, shape, byteLength }) => {
    const offsets = [dataBytes, dataBytes + byteLength];
    dataBytes += byteLength;
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: offsets })}`;
  });
  const json = Buffer.from(`{${entries.join(',')}}`);
  const padding = Buffer.alloc((8 - (json.length % 8)) % 8, ' ');
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length + padding.length));
  return Buffer.concat([length, json, padding]);
}
