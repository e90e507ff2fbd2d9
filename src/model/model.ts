import { Template } from '@huggingface/jinja';
import { type Gguf, readGguf } from './gguf.ts';
import { type Hyperparameters, readHyperparameters, type SamplingDefaults } from './hyperparameters.ts';
import { mapTensors, type TensorMap } from './tensor-map.ts';
import { loadTokenizer, type Tokenizer } from './tokenizer.ts';

export interface Model {
  readonly gguf: Gguf; readonly hyperparameters: Hyperparameters; readonly tensors: TensorMap; readonly tokenizer: Tokenizer;
  readonly sampling: SamplingDefaults;
  renderChat(messages: readonly { role: string; content: string }[]): string;
}
export function openModel(path: string, options: { expertsPerToken?: number; vocabularyOnly?: boolean } = {}): Model {
  const gguf = readGguf(path);
  let tokenizer: Tokenizer | undefined;
  const hyperparameters = options.vocabularyOnly ? (undefined as never) : readHyperparameters(gguf, options.expertsPerToken);
  return {
    gguf, hyperparameters, tensors: options.vocabularyOnly ? (undefined as never) : mapTensors(gguf, hyperparameters),
    get tokenizer() { tokenizer ??= loadTokenizer(gguf); return tokenizer; },
    sampling: hyperparameters?.sampling,
    renderChat: (messages) => new Template(gguf.metadata.string('tokenizer.chat_template')).render({ messages, add_generation_prompt: true }),
  };
}
