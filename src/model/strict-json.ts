/**
 * JSON of which every key counts: `JSON.parse` keeps the last of two equal keys without a word.
 *
 * Why it matters: in a header, a second entry of a name is a second opinion on where a tensor lies, and two readers that
 * choose differently read two models. Invariant: no object of the text has a key twice.
 */
import { quoted } from './header-reader.ts';

export type JsonValue = unknown;

/** Thrown for text that is no JSON, or has a key twice; `message` says what and where, without the file. */
export class JsonProblem extends Error {}

export function parseStrictJson(text: string): JsonValue {
  const value = parseJson(text);
  refuseDuplicates(text);
  return value;
}

export function parseJson(text: string): JsonValue {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new JsonProblem(`is not JSON: ${quoted(cause instanceof Error ? cause.message : String(cause))}`);
  }
}

/** Walks over text that is known to be JSON: only strings, braces and commas matter. */
function refuseDuplicates(text: string): void {
  /** One per open bracket: the keys so far of an object, undefined in an array. */
  const open: (Set<string> | undefined)[] = [];
  let expectsKey = false;
  for (let at = 0; at < text.length; at++) {
    const character = text[at]!;
    if (character === '"') {
      const end = endOfString(text, at);
      if (expectsKey) noteKey(open.at(-1)!, contentOf(text.slice(at, end)));
      expectsKey = false;
      at = end - 1;
    } else if (character === '{') {
      open.push(new Set());
      expectsKey = true;
    } else if (character === '[') {
      open.push(undefined);
      expectsKey = false;
    } else if (character === '}' || character === ']') {
      open.pop();
      expectsKey = false;
    } else if (character === ',') expectsKey = open.at(-1) !== undefined;
  }
}

/** Where the string that begins at `from` ends, behind its quotation mark. */
function endOfString(text: string, from: number): number {
  for (let at = from + 1; ; at++) {
    if (text[at] === '\\') at++;
    else if (text[at] === '"') return at + 1;
  }
}

/** What a string stands for; one without escapes is its own text. */
function contentOf(string: string): string {
  return string.includes('\\') ? (JSON.parse(string) as string) : string.slice(1, -1);
}

function noteKey(keys: Set<string>, key: string): void {
  if (keys.has(key)) throw new JsonProblem(`has ${quoted(key)} twice`);
  keys.add(key);
}

export function isObject(value: JsonValue): value is Readonly<Record<string, JsonValue>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A member of an object, never one that it inherits. */
export function memberOf(value: JsonValue, key: string): JsonValue {
  return isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined;
}
