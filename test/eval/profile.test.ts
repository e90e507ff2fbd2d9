/** Stored profiles: laid under what is given, never in its way, and ignored with a sentence when anything is wrong. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { applyProfile } from '#dist/eval/profile/apply.js';
import { profileKey } from '#dist/eval/profile/key.js';
import { type ProfileEntry, profilePath, storedEntries, storeEntry } from '#dist/eval/profile/store.js';
import { temporaryFolder } from '../support/folder.js';

const folder = temporaryFolder();
const model = join(folder, 'model.gguf');
writeFileSync(model, 'a model');
const key = profileKey(model)!;

const entry = (changes: Partial<ProfileEntry> = {}): ProfileEntry => ({
  budgetBytes: 8e9,
  settings: { readers: 8, window: 4, split: 2, chunk: 256 },
  tunedAt: '2026-11-21T10:00:00.000Z',
  score: 'total',
  gain: { ratio: 1.1, low: 1.05, high: 1.15, p99Ratio: 1 },
  ...changes,
});

beforeEach(() => {
  process.env.XDG_CACHE_HOME = temporaryFolder();
});

describe('a profile', () => {
  it('fills in what is not given, and says so', () => {
    storeEntry(key, entry(), () => {});
    const said: string[] = [];
    const { options, used } = applyProfile({ model, memory: 8e9, onNotice: (text) => said.push(text) });
    expect(options).toMatchObject({ model, memory: 8e9, readers: 8, window: 4, split: 2, chunk: 256 });
    expect(used).toEqual(['readers', 'split', 'window', 'chunk']);
    expect(said).toEqual([expect.stringContaining('using the profile of 2026-11-21: readers 8, split 2')]);
  });

  it('gives way to what is given, with what leans on it', () => {
    storeEntry(key, entry(), () => {});
    const { options, used, leftOut } = applyProfile({ model, memory: 8e9, readers: 2, precision: 'exact' });
    expect(options).toMatchObject({ readers: 2, split: 2 });
    expect(options).not.toHaveProperty('window');
    expect(options).not.toHaveProperty('chunk');
    expect(used).toEqual(['split']);
    expect(leftOut).toEqual([
      { name: 'readers', because: 'readers is given' },
      { name: 'window', because: 'readers is given' },
      { name: 'chunk', because: 'precision is given' },
    ]);
  });

  it('is for budgets near its own, and the nearest one is taken', () => {
    storeEntry(key, entry(), () => {});
    storeEntry(key, entry({ budgetBytes: 10e9, settings: { readers: 32 } }), () => {});
    expect(applyProfile({ model, memory: '9500M' }).options.readers).toBe(32);
    expect(applyProfile({ model, memory: 7e9 }).options.readers).toBe(8);
    expect(applyProfile({ model, memory: 7e9 }).options).not.toHaveProperty('chunk');
    expect(applyProfile({ model, memory: 4e9 }).entry).toBeUndefined();
    expect(applyProfile({ model, memory: 20e9 }).entry).toBeUndefined();
  });

  it('replaces the entry of the same budget', () => {
    storeEntry(key, entry(), () => {});
    storeEntry(key, entry({ settings: {}, gain: null }), () => {});
    expect(storedEntries(key, () => {})).toEqual([entry({ settings: {}, gain: null })]);
    expect(readdirSync(dirname(profilePath(key)))).toHaveLength(1);
  });

  it('is of one machine, disk, model and version', () => {
    storeEntry(key, entry(), () => {});
    const other = join(folder, 'other.gguf');
    writeFileSync(other, 'another model');
    expect(applyProfile({ model: other, memory: 8e9 }).entry).toBeUndefined();
    expect(applyProfile({ model: join(folder, 'none.gguf'), memory: 8e9 }).entry).toBeUndefined();
    for (const name of ['machine', 'disk', 'model', 'version'] as const) {
      expect(storedEntries({ ...key, [name]: 'another' }, () => {})).toEqual([]);
    }
  });

  it('is ignored with a sentence whatever is wrong with its file', () => {
    const path = storeEntry(key, entry(), () => {});
    const sound = readFileSync(path, 'utf8');
    const broken: readonly string[] = [
      '',
      '{',
      '[]',
      'null',
      '\0'.repeat(1000),
      sound.slice(0, sound.length / 2),
      sound.replace('"version": 1', '"version": 2'),
      sound.replace('"readers": 8', '"readers": "8"'),
      sound.replace('"readers": 8', '"readers": 8000'),
      sound.replace('"readers": 8', '"model": "/etc/passwd"'),
      sound.replace('"readers": 8', '"memory": 1'),
      sound.replace('"readers": 8', '"precision": "exact"'),
      sound.replace('"ratio": 1.1', '"ratio": -1'),
      sound.replace(key.machine, 'another machine'),
      `${sound.slice(0, -2)}${' '.repeat(300_000)}}`,
    ];
    for (const text of broken) {
      writeFileSync(path, text);
      const said: string[] = [];
      const { options } = applyProfile({ model, memory: 8e9, onNotice: (sentence) => said.push(sentence) });
      expect(options, text.slice(0, 80)).not.toHaveProperty('readers');
      expect(said).toEqual([expect.stringContaining(`the profile ${path} is ignored: `)]);
      expect(said[0]!.length).toBeLessThan(500);
    }
    // A new one takes its place.
    storeEntry(key, entry(), () => {});
    expect(applyProfile({ model, memory: 8e9 }).options.readers).toBe(8);
  });

  it('is ignored when it is a folder or cannot be read', () => {
    mkdirSync(profilePath(key), { recursive: true });
    const said: string[] = [];
    expect(storedEntries(key, (sentence) => said.push(sentence))).toEqual([]);
    expect(said).toEqual([expect.stringContaining('cannot be read (EISDIR)')]);
  });

  it('is not stored while another process stores one', () => {
    const path = profilePath(key);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(`${path}.lock`, JSON.stringify({ pid: 1, host: 'elsewhere', started: '1' }));
    expect(() => storeEntry(key, entry(), () => {})).toThrow(
      expect.objectContaining({ code: 'LOG_REFUSED' }),
    );
  });
});
