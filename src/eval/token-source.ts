/**
 * The tokens that are measured with: ids, a text, or the text that comes with moestream.
 *
 * Which experts a token needs decides what is read, and random ids, which other benchmarks use, choose experts as no text
 * does. So runs replay real text, the same ids for every setting. A text that is too short is gone through
 * again, which a large expert cache remembers: that is said.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Engine } from '../engine/engine.ts';
import { MoestreamError } from '../errors.ts';

/** Plain data: it crosses processes and stands in logs. */
export interface TokenSource {
  readonly ids?: readonly number[];
  readonly text?: string;
}

/** A story of 850 words, written for this, so that no model knows it by heart. */
const BENCH_TEXT = fileURLToPath(new URL('../../models/bench-text.txt', import.meta.url));

/** All the ids of a source. Throws USAGE when it has none. */
export function idsOf(engine: Engine, source: TokenSource): readonly number[] {
  const { tokenizer } = engine.model;
  // Nothing in a text that is only looked at is a command: `<|im_end|>` in it is eight characters and more.
  const ids =
    source.ids ?? tokenizer.encode(source.text ?? readFileSync(BENCH_TEXT, 'utf8'), { parseSpecial: false });
  if (ids.length === 0) throw new MoestreamError('USAGE', 'the text has no tokens');
  return ids;
}

/** The first `count` ids, gone through again when the source is shorter. */
export function takeIds(
  ids: readonly number[],
  count: number,
  notice: (sentence: string) => void,
): readonly number[] {
  if (ids.length >= count) return ids.slice(0, count);
  notice(`the text has ${ids.length} tokens and ${count} are measured: it is gone through again`);
  return Array.from({ length: count }, (_, index) => ids[index % ids.length]!);
}
