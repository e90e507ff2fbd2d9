/** An opened model: what the file says, and nothing that costs memory before it is asked for. */
import { renderChat, type TemplateMessage } from './chat-template.ts';
import { type Gguf, readGguf } from './gguf.ts';
import { type Hyperparameters, readHyperparameters, type SamplingDefaults } from './hyperparameters.ts';
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

export class Model extends ModelText {
  readonly hyperparameters: Hyperparameters;
  readonly tensors: TensorMap;

  constructor(gguf: Gguf, expertsPerToken?: number) {
    super(gguf);
    this.hyperparameters = readHyperparameters(gguf, expertsPerToken);
    this.tensors = mapTensors(gguf, this.hyperparameters);
  }

  get sampling(): SamplingDefaults {
    return this.hyperparameters.sampling;
  }
}

/** Opens a model to run it. Throws MODEL_NOT_FOUND, MODEL_INVALID or MODEL_UNSUPPORTED. */
export function openModel(path: string, options: { readonly expertsPerToken?: number } = {}): Model {
  return new Model(readGguf(path), options.expertsPerToken);
}

/** Opens a model for its vocabulary only. */
export function openModelText(path: string): ModelText {
  return new ModelText(readGguf(path));
}
