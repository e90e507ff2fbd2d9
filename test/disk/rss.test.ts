/** The budget is obeyed: what a process takes at its peak is the plan, Node.js and its threads, and no more. */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { makeModel } from '../../dist-scripts/scripts/model-maker/make-model.js';
import { temporaryFolder } from '../support/folder.js';

const folder = temporaryFolder();
const path = join(folder, 'model.gguf');
const LIBRARY = new URL('../../dist/index.js', import.meta.url).href;

/** Node.js, about twenty threads and the code of two add-ons. */
const NODE_BYTES = 200e6;

interface Peak {
  readonly peakBytes: number;
  readonly totalBytes: number;
  readonly bytesRead: number;
}

/** Generates in a process of its own, whose peak is then its own. */
function peakWith(options: Record<string, unknown>): Peak {
  const script = `
    import { readFileSync } from 'node:fs';
    import { open } from ${JSON.stringify(LIBRARY)};
    const engine = await open(${JSON.stringify({ model: path, ...options })});
    const answer = engine.generate({ ids: Array.from({ length: 40 }, (_, index) => index) }, { maxTokens: 40, seed: 1 });
    for await (const piece of answer);
    const peak = /^VmHWM:\\s+(\\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))[1] * 1024;
    const { denseBytes, kvBytes, stateBytes, scratchBytes, logitsBytes, slabBytes } = engine.plan;
    const totalBytes = denseBytes + kvBytes + stateBytes + scratchBytes + logitsBytes + slabBytes;
    console.log(JSON.stringify({ peakBytes: peak, totalBytes, bytesRead: answer.result.stats.bytesRead }));
    await engine.close();
    process.exit();`;
  // A file: workers take over the options of a process that runs `-e`, and cannot start.
  const program = join(folder, 'generate.mjs');
  writeFileSync(program, script);
  return JSON.parse(execFileSync(process.execPath, [program], { encoding: 'utf8' })) as Peak;
}

describe.skipIf(process.platform !== 'linux')('peak memory', () => {
  beforeAll(async () => {
    await makeModel({ preset: '35b', layers: 4, experts: 64, vocab: 2048, mix: 'UD_Q3_K_XL' }, path);
  });

  it.each([
    ['a slab of a part of the experts', { memory: '300M' }],
    ['a slab of all experts', { memory: '2G' }],
    [
      'many readers and a long context',
      { memory: '400M', readers: 16, ioEngine: 'threads', contextLength: 16384 },
    ],
    ['large chunks of the prompt', { memory: '400M', chunk: 512 }],
  ])('%s', (_, options) => {
    const { peakBytes, totalBytes, bytesRead } = peakWith(options);
    const summary = `peak ${(peakBytes / 1e6).toFixed(0)} MB, plan ${(totalBytes / 1e6).toFixed(0)} MB`;
    expect(bytesRead).toBeGreaterThan(0);
    expect(peakBytes, summary).toBeLessThanOrEqual(totalBytes * 1.05 + NODE_BYTES);
  });
});
