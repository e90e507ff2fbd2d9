/**
 * The vocabulary as the sample stage needs it: the bytes of every token in shared memory, so that turning a token into
 * text is two loads and a copy, and the tokenizer itself is parsed once, on the main thread.
 */
import type { Tokenizer } from '../model/tokenizer.ts';
import { TOKEN_ENDS, TOKEN_SILENT, type VocabularyTable } from '../pipeline/vocabulary-table.ts';

/** `size` is the model's vocabulary, which may be larger than the tokenizer's: the rest is padding without text. */
export function vocabularyTable(tokenizer: Tokenizer, size: number): VocabularyTable {
  const known = Math.min(size, tokenizer.vocabularySize);
  const texts: Uint8Array[] = [];
  let totalBytes = 0;
  for (let token = 0; token < known; token++) {
    const text = tokenizer.tokenBytes(token);
    texts.push(text);
    totalBytes += text.length;
  }
  const bytes = new Uint8Array(new SharedArrayBuffer(Math.max(1, totalBytes)));
  const offsets = new Uint32Array(new SharedArrayBuffer((size + 1) * 4));
  const flags = new Uint8Array(new SharedArrayBuffer(size));
  let at = 0;
  for (let token = 0; token < size; token++) {
    offsets[token] = at;
    const text = texts[token];
    if (text === undefined || tokenizer.isControl(token)) flags[token] = TOKEN_SILENT;
    if (tokenizer.eogIds.has(token)) flags[token] = TOKEN_ENDS;
    if (text === undefined) continue;
    bytes.set(text, at);
    at += text.length;
  }
  offsets[size] = at;
  return { bytes, offsets, flags };
}
