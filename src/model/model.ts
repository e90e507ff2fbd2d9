/** An opened model: what the file says, and nothing that costs memory before it is asked for. */
import { renderChat, type TemplateMessage } from './chat-template.ts';
import { type Gguf, readGguf } from './gguf.ts';
import { type Hyperparameters, readHyperparameters, type SamplingDefaults } from './hyperparameters.ts';
import { modelPath } from './model-store.ts';
import { type Packed, packedExperts, packedFolder, readPacked } from './packed.ts';
import { mapTensors, type TensorMap } from './tensor-map.ts';
import { Tokenizer } from './tokenizer.ts';

/** The words of a model: enough to tokenize, and all that a vocabulary-only file has. */
export class ModelText {
  readonly gguf: Gguf;
  private loaded: Tokenizer | undefined;

  constructor(gguf: Gguf) {
    this.gguf = gguf;
  }

  /** Loaded when it is first asked for. */
  get tokenizer(): Tokenizer {
    this.loaded ??= new Tokenizer(this.gguf);
    return this.loaded;
  }

  renderChat(messages: readonly TemplateMessage[]): string {
    return renderChat(this.gguf, messages);
  }
}

export interface ModelFile {
  readonly path: string;
  readonly sizeBytes: number;
}

export class Model extends ModelText {
  /** What `file` of a tensor indexes: the parts of the GGUF, or of a packed model the dense file and one per layer. */
  readonly files: readonly ModelFile[];
  /** Of a packed model. */
  readonly packed: Packed | undefined;
  readonly hyperparameters: Hyperparameters;
  readonly tensors: TensorMap;

  constructor(gguf: Gguf, expertsPerToken?: number, packed?: Packed) {
    super(gguf);
    this.files = packed?.files ?? gguf.files;
    this.packed = packed;
    this.hyperparameters = readHyperparameters(gguf, expertsPerToken);
    const experts = packed && packedExperts(packed, this.hyperparameters);
    this.tensors = mapTensors(gguf, this.hyperparameters, experts);
  }

  get sampling(): SamplingDefaults {
    return this.hyperparameters.sampling;
  }
}

/**
 * Opens a model to run it: a GGUF, any part of a split one, a packed folder, or the name of a pulled one. Throws MODEL_NOT_FOUND, MODEL_INVALID or
 * MODEL_UNSUPPORTED.
 */
export function openModel(path: string, options: { readonly expertsPerToken?: number } = {}): Model {
  const found = modelPath(path);
  const packed = packedAt(found);
  return new Model(readGguf(packed?.densePath ?? found), options.expertsPerToken, packed);
}

/** Opens a model for its vocabulary only. */
export function openModelText(path: string): ModelText {
  const found = modelPath(path);
  return new ModelText(readGguf(packedAt(found)?.densePath ?? found));
}

function packedAt(path: string): Packed | undefined {
  const folder = packedFolder(path);
  return folder === undefined ? undefined : readPacked(folder);
}
