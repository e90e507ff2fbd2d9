/** `--io auto`: the page cache where all of a model is in it and stays, the disk otherwise, and the same text from both. */
import { randomBytes } from 'node:crypto';
import { closeSync, copyFileSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeModelFiles, openModelFiles } from '../../dist/engine/model-files.js';
import { cachedShare } from '../../dist/engine/page-cache.js';
import { loadIo } from '../../dist/native.js';
import { generate, withEngine } from '../support/engine.js';
import { dropFromCache, temporaryFolder } from '../support/folder.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const io = loadIo();
const path = join(temporaryFolder(), 'model.gguf');
const BYTES = 8_000_000;
const ROOM = 1e9;
let refusal: string | undefined;

beforeAll(() => {
  copyFileSync(BUILT_IN_MODEL, path);
  refusal = whyNot();
});

function whyNot(): string | undefined {
  try {
    io.close(io.open(path, true).fd);
  } catch {
    return 'the temporary folder has no direct reads';
  }
  if (!dropFromCache(path)) return 'files cannot be dropped from the page cache here (no python3)';
  return cachedShare(io, path) < 0.5 ? undefined : 'the page cache keeps what was dropped from it';
}

/** How `auto` opens a file, and what it says. */
function opened(file: string, room: number): { direct: boolean; notices: string[] } {
  const notices: string[] = [];
  const files = openModelFiles(
    io,
    [file],
    'auto',
    (sentence) => notices.push(sentence),
    () => room,
  );
  closeModelFiles(io, files);
  return { direct: files.direct, notices };
}

describe('a file that was just read', () => {
  it('is read through the page cache, which is said', ({ skip }) => {
    if (refusal !== undefined) skip(refusal);
    readFileSync(path);
    expect(cachedShare(io, path)).toBe(1);
    const { direct, notices } = opened(path, ROOM);
    expect(direct).toBe(false);
    expect(notices).toEqual([
      'reading through the page cache: 100 % of the 30.2 MB are in it, and memory has room for them',
    ]);
  });

  it('is read directly when memory has no room for it', ({ skip }) => {
    if (refusal !== undefined) skip(refusal);
    readFileSync(path);
    expect(opened(path, 30_000_000)).toEqual({ direct: true, notices: [] });
  });

  it('answers with the same text and bytes either way', async ({ skip }) => {
    if (refusal !== undefined) skip(refusal);
    const answers = [];
    for (const cached of [true, false]) {
      if (cached) readFileSync(path);
      else dropFromCache(path);
      const model = { model: path, memory: '60M', contextLength: 256 };
      answers.push(
        await withEngine(model, async (engine) => {
          expect(engine.directIo).toBe(!cached);
          return generate(engine, 'tar', { temperature: 0, maxTokens: 16 });
        }),
      );
    }
    expect(answers[1]).toEqual(answers[0]);
  });
});

describe('a file that is not in memory', () => {
  it('is read directly, and looking for it does not bring it in', ({ skip }) => {
    if (refusal !== undefined) skip(refusal);
    dropFromCache(path);
    for (let time = 0; time < 3; time++) expect(opened(path, ROOM)).toEqual({ direct: true, notices: [] });
  });

  it('counts by what is there: half of a file is half', ({ skip }) => {
    if (refusal !== undefined) skip(refusal);
    const half = join(temporaryFolder(), 'half.bin');
    writeFileSync(half, randomBytes(BYTES));
    dropFromCache(half);
    const file = openSync(half, 'r+');
    writeSync(file, randomBytes(BYTES / 2));
    closeSync(file);
    expect(cachedShare(io, half)).toBeGreaterThan(0.4);
    expect(cachedShare(io, half)).toBeLessThan(0.6);
    expect(opened(half, ROOM).direct).toBe(true);
  });
});
