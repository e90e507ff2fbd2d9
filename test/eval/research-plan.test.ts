/** Plans: every mistake is named with its line, in YAML and in JSON, and the example is sound. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { parsePlan, readPlan } from '#dist/eval/research/plan.js';
import { temporaryFolder } from '../support/folder.js';

const folder = temporaryFolder();
const FILE = join(folder, 'plan.yaml');
writeFileSync(join(folder, 'model.gguf'), '');

const SOUND = `name: a plan
baseline:
  model: model.gguf
  settings: { split: 1 }
experiments:
  - name: four
    settings: { split: 4 }
  - name: other
    environment: { FOO: 1 }
`;

/** The sound plan with one line replaced. */
function withLine(line: number, text: string): string {
  const lines = SOUND.split('\n');
  lines[line - 1] = text;
  return lines.join('\n');
}

function problemOf(text: string): string {
  try {
    parsePlan(text, FILE);
  } catch (error) {
    expect(error).toMatchObject({ code: 'PLAN_INVALID' });
    return (error as Error).message.replaceAll(`${FILE}:`, '');
  }
  return 'sound';
}

describe('a plan', () => {
  it('fills in what is left out', () => {
    const plan = parsePlan(SOUND, FILE);
    expect(plan).toMatchObject({
      score: 'decode',
      rounds: 6,
      gates: { perplexity: { raise: 0.01, tokens: 512 }, p99: { raise: 0.1 } },
      run: { promptTokens: 64, cache: 'warm' },
    });
    expect(plan.experiments[1]?.environment).toEqual({ FOO: '1' });
    expect(parsePlan(`${SOUND}gates: { perplexity: null, p99: null }\n`, FILE).gates).toEqual({
      perplexity: null,
      p99: null,
    });
  });

  it.each([
    [4, '  settings: { split: two }', /^4: baseline\.settings\.split: .*expected number/],
    [4, '  settings: { spilt: 2 }', /^4: baseline\.settings\.spilt: is no field/],
    [4, '  settings: { split: 99 }', /^4: baseline\.settings: split is 99/],
    [3, '  model: none.gguf', /^3: baseline\.model: there is no /],
    [3, '  modell: model.gguf', /^2: baseline\.model: .*\n3: baseline\.modell: is no field/],
    [8, '  - name: four', /^8: experiments\.1\.name: "four" is experiment 1 already/],
    [
      9,
      '    environment: { MOESTREAM_SPLIT: 4 }',
      /^9: experiments\.1\.environment\.MOESTREAM_SPLIT: a setting/,
    ],
    [9, '    git: --upload-pack=x', /^9: experiments\.1\.git: a ref does not begin/],
    [9, '    why: nothing', /^8: experiments\.1: changes nothing/],
    [7, '    settings: { split: 4', /^\d+: /],
    [1, 'name: [a, plan]', /^1: name: .*expected string/],
    [1, 'rounds: 5', /^1: rounds: .*multiple of 2/],
    [1, 'name: "two\\nlines"', /^1: name: one line/],
    [1, 'name: a\nname: b', /^2: /],
    [1, 'run: { decodeTokens: 0 }', /^1: run\.decodeTokens: the score decode needs an answer/],
    [5, 'experiment:', /^1: experiments: .*\n5: experiment: is no field/],
  ])('names the line of a mistake in line %i: %s', (line, text, problem) => {
    expect(problemOf(withLine(line, text))).toMatch(problem);
  });

  it('names the line in JSON too', () => {
    const json =
      '{\n\t"baseline": { "model": "model.gguf" },\n\t"experiments": [\n\t\t{ "name": "x", "settings": { "readers": "all" } }\n\t]\n}\n';
    expect(problemOf(json)).toMatch(/^4: experiments\.0\.settings\.readers: /);
    expect(problemOf(json.replace('"all"', '8'))).toBe('sound');
  });

  it.each([
    ['nothing', ''],
    ['a list', '- 1\n- 2\n'],
    [
      'a billion laughs',
      `a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n`,
    ],
    ['binary', '\0\x01\x02\xff'],
    ['a tag', 'baseline: !!js/function "process.exit()"\n'],
  ])('refuses %s', (_, text) => {
    expect(problemOf(text)).toMatch(/^\d+: /);
  });

  it('that comes as the example is sound', () => {
    const example = readPlan(fileURLToPath(new URL('../../examples/seed-axes.yaml', import.meta.url)));
    expect(example.experiments.length).toBeGreaterThanOrEqual(12);
  });
});
