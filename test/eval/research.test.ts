/** The experiment loop: its rule, its log, and that a kill at any point neither loses nor repeats a result. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { jsonlPath, ResearchLog, readLog } from '#dist/eval/research/log.js';
import { researchPage } from '#dist/eval/research/page.js';
import { parsePlan, type ResearchPlan } from '#dist/eval/research/plan.js';
import type { LogResult } from '#dist/eval/research/records.js';
import { research } from '#dist/eval/research/research.js';
import { renderPage } from '#dist/report/page.js';
import { Random } from '#dist/workers/random.js';
import { temporaryFolder } from '../support/folder.js';
import { Killed, SimulatedRunner } from './simulated-runner.js';

const PLAN = `
baseline: { model: model.gguf, settings: { memory: 30M } }
run: { promptTokens: 8, decodeTokens: 64 }
rounds: 4
experiments:
  - { name: split, why: faster, settings: { split: 4 } }
  - { name: fewer experts, settings: { expertsPerToken: 3 } }
  - { name: crash, settings: { readers: 64 } }
  - { name: no number, settings: { kvType: f32 } }
  - { name: nothing, settings: { window: 4 } }
  - { name: slow tokens, settings: { spins: 9 } }
`;

function planIn(folder: string, text = PLAN): ResearchPlan {
  writeFileSync(join(folder, 'model.gguf'), '');
  return parsePlan(text, join(folder, 'plan.yaml'));
}

/** Works on the log in `out`; true when it came to the end, false when it was killed. */
async function work(plan: ResearchPlan, out: string, runner: SimulatedRunner): Promise<boolean> {
  const log = ResearchLog.open(out);
  try {
    await research({ plan, log, folder: out, runner, budgetBytes: 3e7, notice: () => {} });
    return true;
  } catch (error) {
    if (error instanceof Killed) return false;
    throw error;
  } finally {
    log.close();
  }
}

const summary = ({ name, verdict, rounds }: LogResult): string => `${name} ${verdict} ${rounds.length}`;
const EXPECTED = [
  'baseline baseline 4',
  'split keep 4',
  'fewer experts discard 4',
  'crash error 0',
  'no number discard 4',
  'nothing discard 4',
  'slow tokens discard 4',
];

describe('research', () => {
  it('keeps and discards by rule, and says why', async () => {
    const folder = temporaryFolder();
    const out = join(folder, 'out');
    const runner = new SimulatedRunner();
    expect(await work(planIn(folder), out, runner)).toBe(true);
    const { results } = readLog(out);
    expect(results.map(summary)).toEqual(EXPECTED);
    expect(results.map(({ reason }) => reason)).toEqual([
      '',
      expect.stringMatching(/^\+\d/),
      expect.stringMatching(/^perplexity 6\.5400 is \+17\.2 %, allowed \+1\.0 %/),
      'it crashes (RUN_FAILED)',
      expect.stringMatching(/^perplexity NaN/),
      expect.stringMatching(/^not told from the incumbent/),
      expect.stringMatching(/^p99 is \+100\.0 %, allowed \+10\.0 %/),
    ]);
    // What was kept is what later experiments build on.
    expect(results.slice(2).every(({ settings }) => settings.split === 4)).toBe(true);
    expect(results[2]).toMatchObject({ output: 'changed', incumbent: results[1]?.experiment });
    expect(results[5]).toMatchObject({ output: 'same', perplexity: 5.58, cache: 'warm' });

    const tsv = readFileSync(join(out, 'results.tsv'), 'utf8').trimEnd().split('\n');
    expect(tsv).toHaveLength(1 + EXPECTED.length);
    expect(new Set(tsv.map((line) => line.split('\t').length)).size).toBe(1);
    expect(renderPage(researchPage(readLog(out)))).toContain('fewer experts');

    // All is done: nothing runs again.
    const again = new SimulatedRunner();
    expect(await work(planIn(folder), out, again)).toBe(true);
    expect(again.tasks).toBe(0);
  });

  it('is killed at every third task and goes on without losing or repeating a result', async () => {
    const folder = temporaryFolder();
    const plan = planIn(folder);
    const whole = new SimulatedRunner();
    await work(plan, join(folder, 'whole'), whole);
    for (let killAt = 1; killAt <= whole.tasks; killAt += 3) {
      const out = join(folder, `killed-${killAt}`);
      expect(await work(plan, out, new SimulatedRunner(killAt))).toBe(false);
      const before = readFileSync(jsonlPath(out), 'utf8');
      const rest = new SimulatedRunner();
      expect(await work(plan, out, rest)).toBe(true);
      expect(readFileSync(jsonlPath(out), 'utf8').startsWith(before)).toBe(true);
      expect(readLog(out).results.map(summary)).toEqual(EXPECTED);
      // At most one task of the cut round, and the failing run of the crash, are done twice.
      expect(killAt - 1 + rest.tasks - whole.tasks).toBeLessThanOrEqual(2);
    }
  });

  it('is cut at any byte of its log and goes on', async () => {
    const folder = temporaryFolder();
    const plan = planIn(folder);
    const whole = join(folder, 'whole');
    await work(plan, whole, new SimulatedRunner());
    const bytes = readFileSync(jsonlPath(whole));
    const random = new Random(7);
    for (let each = 0; each < 15; each++) {
      const out = join(folder, `cut-${each}`);
      mkdirSync(out);
      writeFileSync(jsonlPath(out), bytes.subarray(0, Math.floor(random.next() * bytes.length)));
      // The table of a later moment: it follows the log.
      copyFileSync(join(whole, 'results.tsv'), join(out, 'results.tsv'));
      expect(await work(plan, out, new SimulatedRunner())).toBe(true);
      expect(readLog(out).results.map(summary)).toEqual(EXPECTED);
      const tsv = readFileSync(join(out, 'results.tsv'), 'utf8');
      expect(tsv.trimEnd().split('\n')).toHaveLength(1 + EXPECTED.length);
    }
  });

  it('takes more experiments into a log, and no other baseline or gate', async () => {
    const folder = temporaryFolder();
    const out = join(folder, 'out');
    await work(planIn(folder), out, new SimulatedRunner());
    const more = new SimulatedRunner();
    const added = `${PLAN}  - { name: more, settings: { queueDepth: 8 } }\n`;
    expect(await work(planIn(folder, added), out, more)).toBe(true);
    expect(readLog(out).results.map(summary)).toEqual([...EXPECTED, 'more discard 4']);
    expect(more.tasks).toBe(1 + 2 * 4);
    for (const [from, to] of [
      ['30M', '31M'],
      ['rounds: 4', 'rounds: 6'],
      ['rounds: 4', 'rounds: 4\ngates: { p99: null }'],
    ] as const) {
      await expect(
        work(planIn(folder, PLAN.replace(from, to)), out, new SimulatedRunner()),
      ).rejects.toMatchObject({
        code: 'LOG_REFUSED',
      });
    }
  });

  it('refuses a log that is damaged in the middle, and names the line', async () => {
    const folder = temporaryFolder();
    const plan = planIn(folder);
    const out = join(folder, 'out');
    await work(plan, out, new SimulatedRunner());
    const lines = readFileSync(jsonlPath(out), 'utf8').split('\n');
    for (const damage of ['{', '{"kind":"result"}', lines[4]!.replace(/"score":[\d.]+/, '"score":"fast"')]) {
      const damaged = [...lines];
      damaged[4] = damage;
      writeFileSync(jsonlPath(out), damaged.join('\n'));
      expect(() => ResearchLog.open(out)).toThrow(
        expect.objectContaining({ code: 'LOG_REFUSED', message: expect.stringMatching(/damaged at line 5/) }),
      );
    }
    writeFileSync(jsonlPath(out), lines.join('\n'));
    ResearchLog.open(out).close();
  });

  it('lets one process at a time write', () => {
    const out = temporaryFolder();
    const first = ResearchLog.open(out);
    expect(() => ResearchLog.open(out)).toThrow(
      expect.objectContaining({
        code: 'LOG_REFUSED',
        message: expect.stringContaining(`process ${process.pid}`),
      }),
    );
    first.close();
    ResearchLog.open(out).close();
  });

  it('ends when the baseline does not run', async () => {
    const folder = temporaryFolder();
    const broken = planIn(folder, PLAN.replace('memory: 30M', 'readers: 64'));
    await expect(work(broken, join(folder, 'out'), new SimulatedRunner())).rejects.toMatchObject({
      code: 'RUN_FAILED',
      message: expect.stringContaining('the baseline does not run'),
    });
  });
});
