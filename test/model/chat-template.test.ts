import { describe, expect, it } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { renderChat } from '../../dist/model/chat-template.js';
import { type Gguf, readGguf } from '../../dist/model/gguf.js';
import { buildGguf, string, temporaryFiles, u32 } from '../support/gguf-builder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const files = temporaryFiles();

function withTemplate(template?: string): Gguf {
  const metadata = template === undefined ? {} : { 'tokenizer.chat_template': string(template) };
  return readGguf(files.write('model.gguf', buildGguf({ metadata }).bytes));
}

const QUESTION = { role: 'user', content: 'How do I use tar?' };
const CHATML_QUESTION = '<|im_start|>user\nHow do I use tar?<|im_end|>\n<|im_start|>assistant\n';

describe.each([
  ["the built-in model's template", () => readGguf(BUILT_IN_MODEL)],
  ['ChatML, for a file without one', () => withTemplate()],
])('%s', (_, model) => {
  it('asks', () => {
    expect(renderChat(model(), [QUESTION])).toBe(CHATML_QUESTION);
  });

  it('carries a system message and earlier turns', () => {
    const messages = [
      { role: 'system', content: 'Be brief.\n' },
      QUESTION,
      { role: 'assistant', content: "tar {{ x }} {% y %} 'z' \\n" },
      { role: 'user', content: '' },
    ];
    expect(renderChat(model(), messages)).toBe(
      '<|im_start|>system\nBe brief.\n<|im_end|>\n' +
        '<|im_start|>user\nHow do I use tar?<|im_end|>\n' +
        "<|im_start|>assistant\ntar {{ x }} {% y %} 'z' \\n<|im_end|>\n" +
        '<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n',
    );
  });

  it('leaves the messages as they are', () => {
    const messages = Object.freeze([Object.freeze({ ...QUESTION })]);
    expect(renderChat(model(), messages)).toBe(CHATML_QUESTION);
  });
});

describe('a template of another file', () => {
  it('decides what is written, and knows that an answer is wanted', () => {
    const template =
      "{%- for message in messages -%}[{{ message['role'] }}|{{ message.content | trim }}]{%- endfor -%}" +
      '{%- if add_generation_prompt -%}<think>{%- if enable_thinking is defined and not enable_thinking -%}no{%- endif -%}{%- endif -%}';
    expect(renderChat(withTemplate(template), [{ role: 'user', content: ' hi ' }])).toBe('[user|hi]<think>');
  });

  it.each([
    [
      'raises an exception',
      "{{ raise_exception('System message must be first') }}",
      'System message must be first',
    ],
    ['does not parse', '{% for message in messages %}{{ message', ''],
    ['has an unknown tag', '{% nonsense %}', ''],
    ['calls what is no function', '{{ messages() }}', ''],
    ['reaches for the process', "{{ messages.constructor.constructor('return process')().exit(1) }}", ''],
  ])('that %s is MODEL_INVALID and says how to go on', (_, template, reason) => {
    let failure: unknown;
    try {
      renderChat(withTemplate(template), [QUESTION]);
    } catch (error) {
      failure = error;
    }
    expect(failure).toBeInstanceOf(MoestreamError);
    expect(failure).toMatchObject({
      code: 'MODEL_INVALID',
      message: expect.stringMatching(/model\.gguf: its chat template fails: ./),
      hint: expect.stringContaining('--raw'),
    });
    expect((failure as MoestreamError).message).toContain(reason);
  });

  it('that raises control characters does not send them to the terminal', () => {
    const model = withTemplate("{{ raise_exception('a\u001b[2J\u0007b') }}");
    expect(() => renderChat(model, [QUESTION])).toThrow(/: a \[2J b$/);
  });

  it('that is no text is MODEL_INVALID', () => {
    const path = files.write(
      'model.gguf',
      buildGguf({ metadata: { 'tokenizer.chat_template': u32(1) } }).bytes,
    );
    expect(() => renderChat(readGguf(path), [QUESTION])).toThrow(
      /"tokenizer.chat_template" is u32, not a string/,
    );
  });

  it('that never ends is ended', () => {
    const loop = '{% for i in range(3000) %}{% for j in range(3000) %}{{ i * j }}{% endfor %}{% endfor %}';
    expect(() => renderChat(withTemplate(loop), [QUESTION])).toThrow(/its chat template fails: .*timed out/);
  });
});
