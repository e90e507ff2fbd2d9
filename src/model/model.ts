/** An opened model: what the file says, and nothing that costs memory before it is asked for. */
import { dirname } from 'node:path';
import { renderChat, type TemplateMessage } from './chat-template.ts';
import { type Checkpoint, checkpointPath, readCheckpoint } from './checkpoint.ts';
import { type Gguf, readGguf } from './gguf.ts';
import { type Hyperparameters, readHyperparameters, type SamplingDefaults } from './hyperparameters.ts';
import type { ModelSource, SourceFile } from './model-source.ts';
import { DENSE_CHECKPOINT_NAME, type Packed, packedExperts, packedFolder, readPacked } from './packed.ts';
import { mapTensors, type TensorMap } from './tensor-map.ts';
import { Tokenizer } from './tokenizer.ts';

/** The words of a model: enough to tokenize, and all that a vocabulary-only file has. */
export class ModelText {
  readonly source: ModelSource;
  private loaded: Tokenizer | undefined;

  constructor(source: ModelSource) {
    this.source = source;
  }

  /** Loaded when it is first asked for. */
  get tokenizer(): Tokenizer {
    this.loaded ??= new Tokenizer(this.source);
    return this.loaded;
  }

  renderChat(messages: readonly TemplateMessage[]): string {
    return renderChat(this.source, messages);
  }
}

export type ModelFile = SourceFile;

export class Model extends ModelText {
  override readonly source: Gguf | Checkpoint;
  /** What `file` of a tensor indexes: the files of the source, or of a packed model the dense file and one per layer. */
  readonly files: readonly ModelFile[];
  /** Of a packed model. */
  readonly packed: Packed | undefined;
  readonly hyperparameters: Hyperparameters;
  readonly tensors: TensorMap;

  constructor(source: Gguf | Checkpoint, expertsPerToken?: number, packed?: Packed) {
    super(source);
    this.source = source;
    this.files = packed?.files ?? source.files;
    this.packed = packed;
    this.hyperparameters = readHyperparameters(source, expertsPerToken);
    const experts = packed && packedExperts(packed, this.hyperparameters);
    this.tensors = mapTensors(source, this.hyperparameters, experts);
  }

  get sampling(): SamplingDefaults {
    return this.hyperparameters.sampling;
  }
}

/**
 * Opens a model to run it: a GGUF, any part of a split one, a checkpoint folder or any file of one, or a packed folder.
 * Throws MODEL_NOT_FOUND, MODEL_INVALID or MODEL_UNSUPPORTED.
 */
export function openModel(path: string, options: { readonly expertsPerToken?: number } = {}): Model {
  const packed = packedAt(path);
  return new Model(sourceAt(path, packed, true), options.expertsPerToken, packed);
}

/** Opens a model for its vocabulary only. */
export function openModelText(path: string): ModelText {
  return new ModelText(sourceAt(path, packedAt(path), false));
}

function sourceAt(path: string, packed: Packed | undefined, weights: boolean): Gguf | Checkpoint {
  if (packed !== undefined) {
    return packed.dense.file === DENSE_CHECKPOINT_NAME
      ? readCheckpoint({ folder: dirname(packed.densePath), file: packed.dense.file }, weights)
      : readGguf(packed.densePath);
  }
  const checkpoint = checkpointPath(path);
  return checkpoint === undefined ? readGguf(path) : readCheckpoint(checkpoint, weights);
}

function packedAt(path: string): Packed | undefined {
  const folder = packedFolder(path);
  return folder === undefined ? undefined : readPacked(folder);
}
