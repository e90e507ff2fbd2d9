/** Tuning that is killed goes on where it was; a journal that is damaged or of another request is no harm. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { TunableSettings } from '#dist/eval/settings.js';
import { JournaledBench, journalBudget } from '#dist/eval/tune/journal.js';
import { type Axis, type Bench, type Outcome, type SearchResult, search } from '#dist/eval/tune/search.js';
import { temporaryFolder } from '../support/folder.js';
import { SimulatedBench } from './simulated-bench.js';

const AXES: readonly Axis[] = [
  { name: 'split', values: [{ split: 1 }, { split: 2 }, { split: 4 }] },
  { name: 'window', values: [{ window: 1 }, { window: 2 }, { window: 4 }] },
];
const HEAD = { request: { model: 'm' }, budgetBytes: 1e9 };
const speed = ({ split = 1, window = 2 }: TunableSettings): number =>
  30 * (split === 4 ? 1.1 : 1) * (window === 4 ? 1.1 : 1);

class Killed extends Error {}

/** Ends at a round, as a kill would. */
class MortalBench implements Bench {
  rounds = 0;
  private readonly bench: SimulatedBench;
  private readonly killAt: number;

  constructor(seed: number, killAt = Number.POSITIVE_INFINITY) {
    this.bench = new SimulatedBench(seed, speed, { noise: 0.01 });
    this.killAt = killAt;
  }

  async round(candidates: readonly TunableSettings[]): Promise<readonly Outcome[]> {
    if (++this.rounds >= this.killAt) throw new Killed();
    return this.bench.round(candidates);
  }
}

async function tune(path: string, bench: Bench, said: string[] = []): Promise<SearchResult | 'killed'> {
  const journal = new JournaledBench(bench, path, HEAD, (sentence) => said.push(sentence));
  try {
    return await search(journal, { axes: AXES, defaults: { split: 1, window: 2 }, budgetSeconds: 1e6 });
  } catch (error) {
    if (error instanceof Killed) return 'killed';
    throw error;
  } finally {
    journal.close(false);
  }
}

describe('the journal of a tuning', () => {
  it('plays back what was measured, killed again and again', async () => {
    const path = join(temporaryFolder(), 'journal.jsonl');
    let measured = 0;
    for (let session = 1; ; session++) {
      const bench = new MortalBench(session, 4);
      const found = await tune(path, bench);
      measured += found === 'killed' ? bench.rounds - 1 : bench.rounds;
      if (found === 'killed') continue;
      expect(found.winner).toEqual({ split: 4, window: 4 });
      // No round was measured twice: the journal has a head and one line for each.
      expect(readFileSync(path, 'utf8').trimEnd().split('\n')).toHaveLength(1 + measured);
      expect(session).toBeGreaterThan(5);
      break;
    }
    const after = new MortalBench(99);
    expect(await tune(path, after)).toMatchObject({ winner: { split: 4, window: 4 } });
    expect(after.rounds).toBe(0);
    expect(journalBudget(path, HEAD.request)).toBe(1e9);
    expect(journalBudget(path, { model: 'another' })).toBeUndefined();
  });

  it('drops what is damaged with a sentence, and measures that again', async () => {
    const path = join(temporaryFolder(), 'journal.jsonl');
    const whole = await tune(path, new MortalBench(1));
    expect(whole).not.toBe('killed');
    const sound = readFileSync(path, 'utf8');
    const lines = sound.split('\n');
    const changed = (line: number, text: string): string =>
      lines.map((each, index) => (index === line ? text : each)).join('\n');
    const hostile: readonly (readonly [string, RegExp | undefined])[] = [
      ['', undefined],
      ['{}\n', /begins anew/],
      [changed(0, '{"format":"moestream-tuning"}'), /begins anew/],
      [changed(0, lines[0]!.replace('1000000000', '2000000000')), /begins anew/],
      [changed(3, 'null'), /damaged at line 4/],
      [changed(3, lines[3]!.replace(/"score":[\d.]+/, '"score":-1')), /damaged at line 4/],
      [changed(3, lines[3]!.replace(/"seconds":[\d.]+/, '"seconds":1e999')), /damaged at line 4/],
      [sound.slice(0, sound.length - 7), undefined],
    ];
    for (const [text, sentence] of hostile) {
      writeFileSync(path, text);
      const said: string[] = [];
      expect(await tune(path, new MortalBench(1), said)).toMatchObject({ winner: { split: 4, window: 4 } });
      expect(said).toEqual(sentence === undefined ? [] : [expect.stringMatching(sentence)]);
    }
  });

  it('belongs to one process', () => {
    const path = join(temporaryFolder(), 'journal.jsonl');
    const first = new JournaledBench(new MortalBench(1), path, HEAD, () => {});
    expect(() => new JournaledBench(new MortalBench(1), path, HEAD, () => {})).toThrow(
      expect.objectContaining({
        code: 'LOG_REFUSED',
        message: expect.stringContaining('is tuning this model'),
      }),
    );
    first.close(true);
    new JournaledBench(new MortalBench(1), path, HEAD, () => {}).close(true);
  });
});
