/** Small text files of a model folder: bounded, and named when they are something else. */
import { closeSync, readFileSync, statSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';
import { decodeUtf8, openModelFile } from './header-reader.ts';
import { JsonProblem, type JsonValue, parseJson, parseStrictJson } from './strict-json.ts';

const MEGABYTE = 1 << 20;
/** Qwen3.5's tokenizer.json has 13 MB, its index half of one, the others some KB. */
const BYTES_MAX = 256 * MEGABYTE;

/** The text of a file, or undefined when there is none. */
export function readTextFile(path: string): string | undefined {
  if (statSync(path, { throwIfNoEntry: false }) === undefined) return undefined;
  const { fd, sizeBytes } = openModelFile(path);
  try {
    if (sizeBytes > BYTES_MAX) throw invalid(path, `has ${sizeBytes} bytes, the limit is ${BYTES_MAX}`);
    const text = decodeUtf8(readFileSync(fd));
    if (text === undefined) throw invalid(path, 'is not UTF-8');
    if (text.startsWith('version https://git-lfs')) {
      throw invalid(
        path,
        'this is a Git LFS pointer, not the file itself',
        'Fetch the file with `git lfs pull`.',
      );
    }
    return text;
  } finally {
    closeSync(fd);
  }
}

/**
 * The content of a JSON file, or undefined when there is none. `keys` says whether a key may stand twice: looking for that
 * takes three times as long as parsing, a second of a large vocabulary, in which it could hide nothing.
 */
export function readJsonFile(path: string, keys: 'once' | 'any' = 'once'): JsonValue | undefined {
  const text = readTextFile(path);
  if (text === undefined) return undefined;
  try {
    return keys === 'once' ? parseStrictJson(text) : parseJson(text);
  } catch (error) {
    if (error instanceof JsonProblem) throw invalid(path, error.message);
    throw error;
  }
}

function invalid(path: string, problem: string, hint?: string): MoestreamError {
  return new MoestreamError('MODEL_INVALID', `${path}: ${problem}`, hint === undefined ? {} : { hint });
}
