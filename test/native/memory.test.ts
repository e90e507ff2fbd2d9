/** The memory of slab and weights: given back when it is not needed, not when it is collected. */
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { loadIo } from '../../dist/native.js';
import { allocateShared } from '../../dist/pipeline/memory.js';

const BYTES = 64 * 1024 ** 2;

const residentBytes = (): number => 4096 * Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]);

it.runIf(process.platform === 'linux')(
  'is gone from the process when it is released, though its owner lives',
  () => {
    const io = loadIo();
    const memory = allocateShared(BYTES);
    const before = residentBytes();
    io.prefault(memory);
    memory[5] = 42;
    expect(residentBytes() - before).toBeGreaterThan(0.9 * BYTES);
    expect(io.release(memory)).toBe(true);
    expect(residentBytes() - before).toBeLessThan(0.1 * BYTES);
    expect(memory[5]).toBe(0);
  },
);
