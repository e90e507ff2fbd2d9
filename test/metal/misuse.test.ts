/** Host code that is wrong on purpose: the fake Metal stops every mistake with a sentence that names it. */
import { execFileSync, spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { MISUSE, missingEmulator } from './emulator.js';

const SENTENCES: Readonly<Record<string, RegExp>> = {
  'autorelease-without-pool': /autoreleased without a pool/,
  'buffer-left-over': /swiglu: buffer\(0\) is left over from an earlier kernel/,
  'buffer-not-bound': /swiglu: buffer\(1\) is not bound/,
  'commit-twice': /committed twice/,
  'encoder-not-ended': /commit of a command buffer whose encoder was not ended/,
  'encoder-used-after-end': /encoder used after endEncoding/,
  'encoding-after-commit': /encoding into a command buffer that was committed/,
  'fast-math': /library with fast math/,
  leak: /leak of 1 MTLFakeBuffer/,
  'memory-not-in-pages': /not whole pages/,
  'missing-barrier': /missing memoryBarrier .* swiglu buffer\(2\) -> swiglu buffer\(0\)/,
  'missing-barrier-between-writes': /missing memoryBarrier .* both write/,
  'no-pipeline': /dispatch without a pipeline/,
  'no-threadgroups': /a dispatch of 0 threadgroups/,
  'offset-beyond-end': /bound beyond its end/,
  'over-release': /released MTLFakeBuffer release\]: unrecognised selector/,
  'second-encoder': /second encoder while the first was not ended/,
  'too-many-bytes': /setBytes of 4097 bytes/,
  'too-many-threads': /more threads per threadgroup/,
  'too-many-uncommitted': /more than 64 unfinished command buffers/,
  'unknown-selector': /MTLFakeBuffer setLabels:\]: unrecognised selector/,
  'wait-without-commit': /waitUntilCompleted of a command buffer that was not committed/,
  'written-memory-not-mapped': /swiglu writes to a buffer over memory that is not mapped throughout/,
  'written-bytes': /swiglu: buffer\(2\) is written and was given as bytes/,
};

describe.skipIf(missingEmulator !== undefined)('planted mistakes', () => {
  const names =
    missingEmulator === undefined ? execFileSync(MISUSE, { encoding: 'utf8' }).trim().split('\n') : [];

  it('each has its sentence here', () => {
    expect(names.filter((name) => name !== 'none').sort()).toEqual(Object.keys(SENTENCES).sort());
  });

  it('without a mistake, nothing is said', () => {
    const run = spawnSync(MISUSE, ['none'], { encoding: 'utf8' });
    expect([run.stdout, run.stderr, run.status]).toEqual(['nothing\n', '', 1]);
  });

  it.each(Object.entries(SENTENCES))('%s', (name, sentence) => {
    const run = spawnSync(MISUSE, [name], { encoding: 'utf8' });
    // The first word counts: what is left of a mistake may complain once more on its way out.
    expect(run.stderr.split('\n')[0]).toMatch(sentence);
    expect(run.stdout).not.toBe('nothing\n');
  });
});
