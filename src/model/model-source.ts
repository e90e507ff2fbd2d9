/**
 * A model as its files say it is, in GGUF's terms, whatever the files are.
 *
 * Why: hyperparameters, tokenizer, chat template and tensor map are read from one vocabulary of keys and names, GGUF's. A
 * GGUF has it by nature; safetensors.ts translates the names and numbers of a checkpoint folder into it. Nothing above
 * this file asks which of the two a model came from, but for `pack`, which copies files as they are.
 */
import type { MoestreamError } from '../errors.ts';
import type { GgmlType } from './ggml-types.ts';
import type { Place, VectorChange } from './places.ts';

/** The texts of a list, decoded when asked for. */
export interface TextList {
  readonly length: number;
  /** The bytes of text `index`, as a view. */
  bytesAt(index: number): Uint8Array;
  /** The bytes as a string of one character each: quick to make, for comparing only. */
  latin1At(index: number): string;
  /** Text `index`, or undefined when its bytes are not UTF-8. */
  at(index: number): string | undefined;
}

/** Typed access to keys. Every getter returns a value of the asked type or throws MODEL_INVALID naming file, key and value. */
export interface Metadata {
  has(key: string): boolean;
  isArray(key: string): boolean;
  invalid(key: string, problem: string): MoestreamError;
  integer(key: string, min: number, max: number): number;
  optionalInteger(key: string, min: number, max: number): number | undefined;
  number(key: string, min: number, max: number): number;
  optionalNumber(key: string, min: number, max: number): number | undefined;
  optionalBoolean(key: string): boolean | undefined;
  string(key: string): string;
  optionalString(key: string): string | undefined;
  strings(key: string): TextList;
  optionalIntegers(key: string, min: number, max: number): number[] | undefined;
}

export interface SourceTensor extends Place {
  /** In GGUF's words, if the tensor has a part in the model. */
  readonly name: string;
  readonly type: GgmlType;
  /** shape[0] is contiguous. One to four dimensions. */
  readonly shape: readonly number[];
  /** Of affine types: `Place` itself is then that of the codes. */
  readonly scales?: Place;
  readonly biases?: Place;
  readonly change?: VectorChange;
}

export interface SourceFile {
  readonly path: string;
  readonly sizeBytes: number;
}

export interface ModelSource {
  /** What `file` of a tensor indexes; the first one stands for the model in messages. */
  readonly files: readonly SourceFile[];
  readonly metadata: Metadata;
  readonly tensors: ReadonlyMap<string, SourceTensor>;
  /** DeltaNet value heads stand grouped by key head, as in the architecture's own checkpoints; GGUF's qwen35moe tiles them. */
  readonly groupedValueHeads?: boolean;
  /** What the files themselves call a tensor. */
  ownName?(name: string): string;
}
