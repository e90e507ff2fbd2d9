/** An opened model: what the file says, and nothing that costs memory before it is asked for. */
import { dirname } from 'node:path';
import { renderChat, type TemplateMessage } from './chat-template.ts';
import { type Checkpoint, checkpointPath, readCheckpoint } from './checkpoint.ts';
import { type Gguf, readGguf } from './gguf.ts';
import { type Hyperparameters, readHyperparameters, type SamplingDefaults } from './hyperparameters.ts';
import { type Donors, mixed } from './mixed.ts';
import type { ModelSource, SourceFile } from './model-source.ts';
import { modelPath } from './model-store.ts';
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
  /**
   * What `file` of a tensor indexes: the files of the source, of a packed model the dense file and one per layer, of a mixed
   * model those in use.
   */
  readonly files: readonly ModelFile[];
  /** Of a packed model. */
  readonly packed: Packed | undefined;
  readonly hyperparameters: Hyperparameters;
  readonly tensors: TensorMap;

  constructor(source: Gguf | Checkpoint, expertsPerToken?: number, packed?: Packed, donors: Donors = {}) {
    super(source);
    this.source = source;
    this.packed = packed;
    this.hyperparameters = readHyperparameters(source, expertsPerToken);
    const experts = packed && packedExperts(packed, this.hyperparameters);
    const own = {
      files: packed?.files ?? source.files,
      hyperparameters: this.hyperparameters,
      tensors: mapTensors(source, this.hyperparameters, experts),
    };
    const isMixed = Object.values(donors).some((donor) => donor !== undefined);
    const { files, tensors } = isMixed ? mixed(own, donors) : own;
    this.files = files;
    this.tensors = tensors;
  }

  get sampling(): SamplingDefaults {
    return this.hyperparameters.sampling;
  }
}

/** Other checkpoints of the same model that parts come from: paths, as `openModel` takes them. */
export interface MixOptions {
  readonly experts?: string | undefined;
  readonly embedding?: string | undefined;
  readonly lmHead?: string | undefined;
}

export interface OpenModelOptions extends MixOptions {
  readonly expertsPerToken?: number | undefined;
}

/**
 * Opens a model to run it: a GGUF, any part of a split one, a checkpoint folder or any file of one, a packed folder, or
 * the name of a pulled model. Throws MODEL_NOT_FOUND, MODEL_INVALID or MODEL_UNSUPPORTED.
 */
export function openModel(given: string, options: OpenModelOptions = {}): Model {
  const path = modelPath(given);
  const opened = new Map<string, Model>();
  const donor = (from: string | undefined): Model | undefined => {
    if (from === undefined) return undefined;
    const known = opened.get(from) ?? openModel(from);
    opened.set(from, known);
    return known;
  };
  const packed = packedAt(path);
  return new Model(sourceAt(path, packed, true), options.expertsPerToken, packed, {
    experts: donor(options.experts),
    embedding: donor(options.embedding),
    lmHead: donor(options.lmHead),
  });
}

/** Opens a model for its vocabulary only. */
export function openModelText(given: string): ModelText {
  const path = modelPath(given);
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
