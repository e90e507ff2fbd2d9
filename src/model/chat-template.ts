/**
 * Conversations as text: the model's own Jinja template, which is part of the file.
 *
 * A template is untrusted input too: it runs in @huggingface/jinja's interpreter, which reaches nothing but its
 * variables, for at most five seconds, and what it throws becomes a typed error.
 */
import { runInNewContext } from 'node:vm';
import { Template } from '@huggingface/jinja';
import { MoestreamError } from '../errors.ts';
import type { ModelSource } from './model-source.ts';

export interface TemplateMessage {
  readonly role: string;
  readonly content: string;
}

/** What Qwen models were trained with, for a file that carries no template. */
const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** Two nested loops of a few thousand rounds would keep a process busy for minutes. */
const RENDER_MILLIS_MAX = 5000;

/** Calls the function; Node's vm ends it when the time is over, wherever it is. */
function withinTime<T>(work: () => T, millis: number): T {
  return runInNewContext('work()', { work }, { timeout: millis }) as T;
}

/** Renders a conversation up to where the answer begins. Throws MODEL_INVALID when the template does not work. */
export function renderChat(from: ModelSource, messages: readonly TemplateMessage[]): string {
  const source = from.metadata.optionalString('tokenizer.chat_template') ?? CHATML;
  try {
    const template = new Template(source);
    return withinTime(
      () => template.render({ messages: [...messages], add_generation_prompt: true }),
      RENDER_MILLIS_MAX,
    );
  } catch (cause) {
    // A template can raise any text: control characters in it must not reach a terminal.
    const reason = (cause instanceof Error ? cause.message : String(cause)).replace(/\p{Cc}+/gu, ' ');
    throw new MoestreamError('MODEL_INVALID', `${from.files[0]!.path}: its chat template fails: ${reason}`, {
      hint: 'Use --raw and write the prompt as the model expects it.',
      cause,
    });
  }
}
