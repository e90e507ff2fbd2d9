/** The manifest is input that somebody else wrote: a typed error or a sound model, never anything else. */
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { MoestreamError } from '../../dist/errors.js';
import { openModel, openModelText } from '../../dist/model/model.js';
import { pack } from '../../dist/pack/pack.js';
import { makeModel } from '../../dist-scripts/scripts/model-maker/make-model.js';
import { temporaryFolder } from '../support/folder.js';

const folder = temporaryFolder();
const packed = join(folder, 'packed');
const manifest = join(packed, 'manifest.json');
let good: string;

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

beforeAll(async () => {
  const path = join(folder, 'tiny.gguf');
  await makeModel({ preset: 'tiny', mix: 'UD_Q3_K_XL', outlier: 1, experts: 5, layers: 3, vocab: 300 }, path);
  await pack(path, packed);
  good = readFileSync(manifest, 'utf8');
});

/** What opening the folder gives with this manifest: `open`, or the error. */
function outcome(text: string | Uint8Array): 'open' | MoestreamError {
  writeFileSync(manifest, text);
  try {
    openModel(packed);
    return 'open';
  } catch (error) {
    if (!MoestreamError.is(error)) throw error;
    expect(error.code).toMatch(/^MODEL_/);
    return error;
  } finally {
    writeFileSync(manifest, good);
  }
}

/** The manifest with the value under `path` changed; undefined takes it out. */
function changed(path: readonly (string | number)[], value: Json | undefined): string {
  const root = JSON.parse(good) as Json;
  let holder = root as Record<string, Json>;
  for (const key of path.slice(0, -1)) holder = holder[key] as Record<string, Json>;
  const last = path.at(-1)!;
  if (value === undefined) delete holder[last];
  else holder[last] = value;
  return JSON.stringify(root);
}

describe('a manifest', () => {
  it('that is whole opens', () => {
    expect(outcome(good)).toBe('open');
    expect(openModelText(packed).tokenizer.vocabularySize).toBe(300);
    expect(openModel(packed).files).toHaveLength(4);
  });

  it.each<[RegExp, (string | number)[], Json | undefined]>([
    [/format is "other"/, ['format'], 'other'],
    [/version 3 of the format/, ['version'], 3],
    [/source\.fingerprint is missing/, ['source', 'fingerprint'], undefined],
    [/dense\.file is "\.\.\/model\.gguf", not a plain file name/, ['dense', 'file'], '../model.gguf'],
    [/dense\.file is "a-00001-of-00002\.gguf", not/, ['dense', 'file'], 'a-00001-of-00002.gguf'],
    [/model\.gguf: has \d+ bytes, the manifest says 5/, ['dense', 'sizeBytes'], 5],
    [/dense\.crc32 is "XYZ", not eight hex digits/, ['dense', 'crc32'], 'XYZ'],
    [/layers has 0 entries/, ['layers'], []],
    [/layers\[1\]\.file is "\/etc\/passwd", not a plain/, ['layers', 1, 'file'], '/etc/passwd'],
    [/layers\[1\]\.file is "\.\.", not a plain/, ['layers', 1, 'file'], '..'],
    [/layers\[1\]\.file is "experts-000\.bin", used twice/, ['layers', 1, 'file'], 'experts-000.bin'],
    [/experts-9\.bin: a file of a packed model is missing/, ['layers', 1, 'file'], 'experts-9.bin'],
    [/layers\[0\]\.crc32 has 5 entries/, ['layers', 0, 'experts'], 4],
    [/layers\[0\]\.strideBytes is 100000, not a multiple/, ['layers', 0, 'strideBytes'], 100000],
    [/layers\[0\]\.strideBytes is 16384, but an expert/, ['layers', 0, 'strideBytes'], 16384],
    [/experts-000\.bin: has \d+ bytes, the manifest says/, ['layers', 0, 'strideBytes'], 16384 * 20],
    [/layers\[2\]\.gate\.type is "Q9", which is no/, ['layers', 2, 'gate', 'type'], 'Q9'],
    [/layers\[2\]\.gate\.type is IQ1_S, which cannot/, ['layers', 2, 'gate', 'type'], 'IQ1_S'],
    [/layers\[2\]\.up\.cols is 100, not a multiple/, ['layers', 2, 'up', 'cols'], 100],
    [/layers\[2\]\.up\.rows is -1, it must be between/, ['layers', 2, 'up', 'rows'], -1],
    [/layers\[2\]\.down\.byteLength is 7, but its rows take/, ['layers', 2, 'down', 'byteLength'], 7],
    [/layers\[0\]\.gate is not an object/, ['layers', 0, 'gate'], 'IQ3_XXS'],
    [/layers\[0\]\.crc32\[3\] is not a string/, ['layers', 0, 'crc32', 3], 12],
  ])('%s', (message, path, value) => {
    expect((outcome(changed(path, value)) as Error).message).toMatch(message);
  });

  it('of another model is refused', () => {
    const root = JSON.parse(good) as { layers: Json[] };
    root.layers.pop();
    expect((outcome(JSON.stringify(root)) as Error).message).toMatch(
      /number of layers is 2, the model has 3/,
    );
  });

  it('with any field changed opens or says why not', () => {
    const paths: (string | number)[][] = [];
    const walk = (value: Json, path: (string | number)[]): void => {
      if (path.length > 0) paths.push(path);
      if (typeof value !== 'object' || value === null) return;
      for (const [key, item] of Object.entries(value)) {
        walk(item, [...path, Array.isArray(value) ? Number(key) : key]);
      }
    };
    walk(JSON.parse(good) as Json, []);
    const value = fc.oneof(
      fc.jsonValue() as fc.Arbitrary<Json>,
      fc.constantFrom<Json | undefined>(
        undefined,
        -1,
        0,
        1,
        2 ** 31,
        2 ** 53,
        1e308,
        0.5,
        '',
        '..',
        'a/b',
        [],
      ),
      fc.integer().map((factor) => factor * 16384),
    );
    fc.assert(
      fc.property(fc.constantFrom(...paths), value, (path, changedTo) => {
        outcome(changed(path, changedTo));
      }),
      { numRuns: 400 },
    );
  });

  it('with any bytes changed or cut opens or says why not', () => {
    const bytes = Buffer.from(good);
    fc.assert(
      fc.property(fc.nat(bytes.length), fc.uint8Array({ maxLength: 12 }), fc.boolean(), (at, noise, cut) => {
        const head = bytes.subarray(0, at);
        outcome(Buffer.concat(cut ? [head, noise] : [head, noise, bytes.subarray(at + noise.length)]));
      }),
      { numRuns: 200 },
    );
    expect((outcome('['.repeat(1e6)) as Error).message).toMatch(/not JSON/);
  });
});

describe('files of a packed model', () => {
  function copy(name: string): string {
    const to = join(folder, name);
    mkdirSync(to);
    for (const file of readdirSync(packed)) copyFileSync(join(packed, file), join(to, file));
    return to;
  }

  it('that are cut, empty, missing or folders are refused by name', () => {
    const to = copy('damaged');
    truncateSync(join(to, 'experts-001.bin'), 16384);
    expect(() => openModel(to)).toThrow(
      expect.objectContaining({
        code: 'MODEL_INVALID',
        message: expect.stringMatching(/experts-001\.bin: has 16384/),
      }),
    );
    rmSync(join(to, 'experts-001.bin'));
    expect(() => openModel(to)).toThrow(expect.objectContaining({ code: 'MODEL_NOT_FOUND' }));
    mkdirSync(join(to, 'experts-001.bin'));
    expect(() => openModel(to)).toThrow(/experts-001\.bin: no regular file/);
    truncateSync(join(to, 'model.gguf'), 0);
    expect(() => openModel(to)).toThrow(/model\.gguf: has 0 bytes/);
  });

  it('are told from a folder that is no model, and from no folder at all', () => {
    expect(() => openModel(folder)).toThrow(/a folder without manifest\.json, not a packed model/);
    expect(() => openModel(join(folder, 'nothing'))).toThrow(
      expect.objectContaining({ code: 'MODEL_NOT_FOUND' }),
    );
    expect(() => openModel(join(folder, 'nothing', 'manifest.json'))).toThrow(
      expect.objectContaining({ code: 'MODEL_NOT_FOUND' }),
    );
  });
});
