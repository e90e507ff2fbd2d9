/** Logs of lines: cut at any byte they lose the torn line and nothing else. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { LineWriter, readLines } from '#dist/eval/line-log.js';
import { temporaryFolder } from '../support/folder.js';

const numberOf = (value: unknown): number | undefined =>
  typeof value === 'object' && value !== null && 'n' in value && typeof value.n === 'number'
    ? value.n
    : undefined;

describe('a log of lines', () => {
  it('goes on behind what is sound, wherever it was cut', () => {
    const path = join(temporaryFolder(), 'log.jsonl');
    const writer = new LineWriter(path, 0);
    for (const n of [1, 2, 3]) writer.append(JSON.stringify({ n, text: 'ü'.repeat(n) }));
    writer.close();
    const whole = readFileSync(path);
    for (let cut = 0; cut <= whole.length; cut++) {
      writeFileSync(path, whole.subarray(0, cut));
      const found = readLines(path, numberOf)!;
      const complete = whole.subarray(0, cut).filter((byte) => byte === 10).length;
      expect(found.entries).toEqual([1, 2, 3].slice(0, complete));
      expect(found.badLine).toBeUndefined();
      const next = new LineWriter(path, found.soundBytes);
      next.append('{"n":9}');
      next.close();
      expect(readLines(path, numberOf)!.entries).toEqual([...found.entries, 9]);
    }
  });

  it('names the first damaged line and keeps what is before it', () => {
    const path = join(temporaryFolder(), 'log.jsonl');
    for (const damage of ['{"n":', '\0\0\0\0', '{"m":1}', '']) {
      writeFileSync(path, `{"n":1}\n${damage}\n{"n":3}\n`);
      expect(readLines(path, numberOf)).toEqual({ entries: [1], soundBytes: 8, badLine: 2 });
    }
  });

  it('is undefined when there is none, and refused when it is no file', () => {
    const folder = temporaryFolder();
    expect(readLines(join(folder, 'none'), numberOf)).toBeUndefined();
    expect(() => readLines(folder, numberOf)).toThrow(expect.objectContaining({ code: 'LOG_REFUSED' }));
  });
});
