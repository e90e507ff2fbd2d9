/** The memory of slab and weights: laid over huge pages, and given back when it is not needed, not when it is collected. */
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { loadIo } from '../../dist/native.js';
import { allocateSegment, allocateShared } from '../../dist/pipeline/memory.js';

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

it('begins on a huge page and takes no more memory for it', (context) => {
  const io = loadIo();
  const hugeBytes = io.hugePageSize();
  if (hugeBytes === 0) return context.skip('this system has no huge pages');
  if (hugeBytes > 4 * 1024 ** 2) return context.skip('huge pages of this size would take gigabytes');
  // Many, because one may begin there by chance.
  const sizes = [hugeBytes - 1, hugeBytes, 3 * hugeBytes + 4096, 8 * hugeBytes, 8 * hugeBytes + 12_288];
  for (const bytes of sizes) {
    const before = residentBytes();
    const memory = allocateSegment(bytes, io);
    expect(memory.length).toBe(bytes);
    if (bytes >= hugeBytes) expect(io.bytesToBoundary(memory, hugeBytes)).toBe(0);
    io.prefault(memory);
    expect(residentBytes() - before).toBeLessThan(bytes + hugeBytes / 2);
    memory.fill(7);
    const copy = structuredClone(memory);
    expect(copy.byteOffset).toBe(memory.byteOffset);
    expect(copy.length).toBe(bytes);
    io.release(memory);
  }
});
