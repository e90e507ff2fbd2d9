/** Files of probabilities: right to the last bit that matters, and never believed when they are damaged. */
import { execFileSync, spawn } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { BaselineReader, BaselineWriter, baselineBytes } from '#dist/eval/baseline.js';
import { DivergenceSum } from '#dist/eval/kl.js';
import { logSumExp } from '#dist/eval/likelihood.js';
import { measurePerplexity } from '#dist/eval/perplexity.js';
import { runCli } from '../support/cli.js';
import { score, withEngine } from '../support/engine.js';
import { mountSmall, temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL, fixture, tldrGolden } from '../support/golden.js';

const folder = temporaryFolder();
const base = join(folder, 'base.kl');
const ids = tldrGolden().val.ids.slice(0, 120);
const exact = { model: BUILT_IN_MODEL, precision: 'exact' as const, readers: 4 };
const lossy = { ...exact, expertsPerToken: 3 };
const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

beforeAll(async () => {
  await measurePerplexity({
    options: exact,
    source: { ids },
    method: { context: 40 },
    writeBaseline: base,
  });
});

describe('divergence', () => {
  it('of a model from itself is nothing, and its perplexity the same', async () => {
    const found = await measurePerplexity({ options: exact, baseline: base });
    expect(found.scoredTokens).toBe(3 * 19);
    expect(found.divergence).toMatchObject({ rows: 57, sameTop: 1, sameTopError: 0 });
    expect(found.divergence!.mostKl).toBeLessThan(1e-7);
    expect(found.divergence!.rmsDifference).toBeLessThan(1e-4);
    expect(found.divergence!.basePerplexity / found.perplexity).toBeCloseTo(1, 4);
  });

  it('of another model is what float64 says', async () => {
    const found = (await measurePerplexity({ options: lossy, baseline: base })).divergence!;
    const [p, q] = await Promise.all(
      [exact, lossy].map((options) => withEngine(options, (engine) => chunkedProbabilities(engine))),
    );
    const kl: number[] = [];
    let same = 0;
    let squares = 0;
    for (const [index, { row, token }] of p!.entries()) {
      const other = q![index]!.row;
      kl.push(row.reduce((sum, value, id) => sum + value * Math.log(value / other[id]!), 0));
      if (row.indexOf(Math.max(...row)) === other.indexOf(Math.max(...other))) same++;
      squares += (other[token]! - row[token]!) ** 2;
    }
    expect(kl.length).toBe(57);
    const meanKl = kl.reduce((sum, each) => sum + each) / 57;
    expect(Math.abs(found.meanKl / meanKl - 1)).toBeLessThan(2e-4);
    expect(found.mostKl).toBeCloseTo(Math.max(...kl), 3);
    expect(found.sameTop).toBe(same / 57);
    expect(found.rmsDifference).toBeCloseTo(Math.sqrt(squares / 57), 3);
  });

  it('of distributions that are known', () => {
    const path = join(folder, 'known.kl');
    const header = { vocabulary: 4, ids: [0, 1], windowTokens: 2, windows: 1, from: 0 };
    const p = [0.5, 0.25, 0.25, 1e-30];
    const q = [0.25, 0.25, 0.25, 0.25];
    const logits = (all: readonly number[]) => Float32Array.from(all, (each) => Math.log(each) + 3);
    const writer = new BaselineWriter(path, header);
    writer.add(logits(p), logSumExp(logits(p)));
    writer.finish();
    expect(statSync(path).size).toBe(baselineBytes(header));
    const reader = new BaselineReader(path);
    const sum = new DivergenceSum();
    sum.add(reader.next(), logits(q), logSumExp(logits(q)), 0);
    reader.close();
    const found = sum.result();
    expect(found.meanKl).toBeCloseTo(0.5 * Math.log(2), 4);
    expect(found.meanDifference).toBeCloseTo(-0.25, 3);
    expect(found.basePerplexity).toBeCloseTo(2, 3);
    expect(found.logRatio).toBeCloseTo(Math.log(2), 3);
  });
});

/** Every scored row of the chunks as probabilities in float64, and the token that follows. */
async function chunkedProbabilities(
  engine: Parameters<typeof score>[0],
): Promise<{ readonly row: Float64Array; readonly token: number }[]> {
  const found: { row: Float64Array; token: number }[] = [];
  for (const start of [0, 40, 80]) {
    const chunk = ids.slice(start, start + 40);
    const { logits } = await score(engine, chunk);
    for (let position = 20; position < 39; position++) {
      const row = logits.subarray(position * engine.vocabularySize, (position + 1) * engine.vocabularySize);
      const total = logSumExp(row);
      found.push({
        row: Float64Array.from(row, (logit) => Math.exp(logit - total)),
        token: chunk[position + 1]!,
      });
    }
  }
  return found;
}

describe('a damaged file is refused', () => {
  const damaged = (name: string, damage: (bytes: Buffer) => void): string => {
    const path = join(folder, name);
    const bytes = readFileSync(base);
    damage(bytes);
    writeFileSync(path, bytes);
    return path;
  };
  const flip = (at: number) => (bytes: Buffer) => {
    bytes[at]! ^= 0x10;
  };

  it.each([
    ['the magic', flip(0), /no file of probabilities/],
    ['the version', flip(8), /of version 17/],
    ['the vocabulary', flip(12), /its header promises/],
    ['the windows', flip(20), /its header promises/],
    ['the first scored row', flip(24), /its header promises/],
    ['reserved bytes', flip(40), /its header has another checksum/],
    ['an id', flip(64), /its header has another checksum/],
    [
      'a vocabulary of four billion',
      (bytes: Buffer) => bytes.writeUInt32LE(0xffffffff, 12),
      /makes no sense/,
    ],
    ['no windows', (bytes: Buffer) => bytes.writeUInt32LE(0, 20), /makes no sense/],
  ])('%s', (name, damage, message) => {
    const refused = { code: 'BASELINE_REFUSED', message: expect.stringMatching(message) };
    expect(() => new BaselineReader(damaged(`${name}.kl`, damage))).toThrow(expect.objectContaining(refused));
  });

  it('a row', async () => {
    const run = await runCli([
      'perplexity',
      BUILT_IN_MODEL,
      '--kl',
      damaged('row.kl', flip(statSync(base).size - 100)),
    ]);
    expect([run.code, run.stdout]).toEqual([1, '']);
    expect(run.stderr).toMatch(/is damaged: row 56 has another checksum \(BASELINE_REFUSED\)/);
  });

  it('cut off, empty, absent, or of another vocabulary', async () => {
    const cut = join(folder, 'cut.kl');
    copyFileSync(base, cut);
    truncateSync(cut, statSync(base).size - 1);
    expect(() => new BaselineReader(cut)).toThrow(/its header promises/);
    truncateSync(cut, 10);
    expect(() => new BaselineReader(cut)).toThrow(/too short/);
    expect(() => new BaselineReader(join(folder, 'none.kl'))).toThrow(/ENOENT/);
    const other = measurePerplexity({
      options: { model: fixture('golden/nano-F32/model.gguf') },
      baseline: base,
    });
    await expect(other).rejects.toMatchObject({
      code: 'BASELINE_REFUSED',
      message: /of 8192 tokens, this one has/,
    });
  });
});

describe('a half file never looks whole', () => {
  const score = ['perplexity', BUILT_IN_MODEL, '--ids', join(folder, 'ids'), '--tokens', '2000', '--decode'];
  const left = (prefix: string): string[] => readdirSync(folder).filter((name) => name.startsWith(prefix));
  beforeAll(() => writeFileSync(join(folder, 'ids'), tldrGolden().val.ids.join(' ')));

  it.each([
    ['SIGINT', 130],
    ['SIGKILL', null],
  ] as const)('%s in the middle', async (signal, code) => {
    const target = `${signal}.kl`;
    const child = spawn(process.execPath, [MAIN, ...score, '--kl-base', join(folder, target)]);
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    // A row and more has been written when the file has grown beyond its header.
    const grown = (): boolean => left(target).some((name) => statSync(join(folder, name)).size > 100_000);
    while (!grown() && child.exitCode === null) await new Promise((resolve) => setImmediate(resolve));
    child.kill(signal);
    expect(await ended).toBe(code);
    expect(existsSync(join(folder, target))).toBe(false);
    expect(left(target).length).toBe(signal === 'SIGKILL' ? 1 : 0);
  });

  it('a disk that is too small is noticed before the first token', async (context) => {
    const disk = join(folder, 'small-disk');
    const why = mountSmall(disk, '1m');
    if (why !== undefined) return context.skip(why);
    try {
      const run = await runCli([...score, '--kl-base', join(disk, 'out.kl')]);
      expect([run.code, run.stdout]).toEqual([1, '']);
      expect(run.stderr).toMatch(/out\.kl will have 32\.8 MB, its disk has 1\.0\d MB free \(DISK_FULL\)/);
      expect(readdirSync(disk)).toEqual([]);
    } finally {
      execFileSync('umount', ['-l', disk]);
    }
  });

  it('a disk that fills up in the middle', async (context) => {
    const disk = join(folder, 'filling-disk');
    const why = mountSmall(disk, '1m');
    if (why !== undefined) return context.skip(why);
    try {
      const header = { vocabulary: 8192, ids: ids.slice(0, 40), windowTokens: 40, windows: 1, from: 0 };
      const writer = new BaselineWriter(join(disk, 'out.kl'), header);
      writeFileSync(join(disk, 'filler'), Buffer.alloc(800_000));
      const fill = (): void => {
        for (let row = 0; row < 39; row++) writer.add(new Float32Array(8192), Math.log(8192));
      };
      expect(fill).toThrow(
        expect.objectContaining({ code: 'DISK_FULL', hint: expect.stringMatching(/room/) }),
      );
      writer.discard();
      expect(readdirSync(disk)).toEqual(['filler']);
    } finally {
      execFileSync('umount', ['-l', disk]);
    }
  });
});
