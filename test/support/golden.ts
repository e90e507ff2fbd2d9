/**
 * Golden values: small ones are copied into test/fixtures/golden, larger ones are used when the folder that they come
 * from lies beside the repository.
 */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));

export const BUILT_IN_MODEL = root('models/tldr-UD_Q3_K_XL.gguf');
export const fixture = (path: string): string => root(`test/fixtures/${path}`);
export const shared = (path: string): string => root(`../shared/${path}`);

/** Why a test that needs the larger files is skipped, or undefined when they are there. */
export function missingShared(path: string): string | undefined {
  return existsSync(shared(path)) ? undefined : `needs ../shared/${path}, which does not come with a clone`;
}

export function readFloats(path: string): Float32Array {
  const bytes = readFileSync(path);
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

export function readJson<T>(path: string): T {
  return JSON.parse(readFileSync(path, 'utf8')) as T;
}

/** Root mean square of the difference by that of the reference. */
export function relativeRms(actual: Float32Array, expected: Float32Array): number {
  if (actual.length !== expected.length)
    throw new Error(`${actual.length} values, expected ${expected.length}`);
  let difference = 0;
  let size = 0;
  for (let index = 0; index < expected.length; index++) {
    difference += (actual[index]! - expected[index]!) ** 2;
    size += expected[index]! ** 2;
  }
  return Math.sqrt(difference / size);
}

/** -log of the softmax probability of `token`, in float64. */
export function negativeLogLikelihood(logits: Float32Array, token: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const logit of logits) largest = Math.max(largest, logit);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - largest);
  return Math.log(sum) + largest - logits[token]!;
}

export interface TldrGolden {
  readonly chat: { ids: number[]; logits_file: string; rows: number; vocab: number; experts: number[][][] };
  readonly prose: {
    ids: number[];
    logits_file: string;
    rows: number;
    vocab: number;
    experts_last16: number[][][];
  };
  readonly val: { ids: number[]; nll: number[]; ppl: number };
  readonly wikitext2: { ids: number[]; nll: number[]; ppl: number };
  readonly greedy: { prompt: number[]; output: number[] }[];
}

export const tldrGolden = (): TldrGolden => readJson<TldrGolden>(fixture('golden/tldr.json'));
