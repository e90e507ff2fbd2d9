/**
 * How long a hand-off takes: from compute queueing the reads of a layer to compute awake with all of them done.
 *
 * Real queue, tickets and readers; the reads are 4 KiB out of the page cache (about 1 us), so what is left is the cost of
 * the fabric. Run: npm run bench:handoff
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Piscina } from 'piscina';
import { loadIo } from '#dist/native.js';
import { ControlBlock } from '#dist/pipeline/control.js';
import { emptyRequest, FetchQueue, LANE_DEMAND } from '#dist/pipeline/fetch-queue.js';
import { allocateShared, PAGE_BYTES } from '#dist/pipeline/memory.js';
import { Tickets } from '#dist/pipeline/tickets.js';

const ROUNDS = 5000;
const WARM_UP = 500;

interface Shape {
  readonly name: string;
  readonly experts: number;
  readonly chunks: number;
}

const SHAPES: readonly Shape[] = [
  { name: 'one chunk', experts: 1, chunks: 1 },
  { name: '4 experts x 4 chunks', experts: 4, chunks: 4 },
  { name: '10 experts x 4 chunks', experts: 10, chunks: 4 },
];

function percentile(sorted: Float64Array, share: number): string {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!.toFixed(1);
}

/** Queues a layer's reads and sleeps until all are done, as compute does. Returns microseconds. */
function handOff(queue: FetchQueue, tickets: Tickets, control: ControlBlock, shape: Shape): number {
  const request = { ...emptyRequest(), byteLength: PAGE_BYTES, requiredBytes: PAGE_BYTES };
  const began = performance.now();
  for (let expert = 0; expert < shape.experts; expert++) {
    const firstClaim = tickets.open(expert, shape.chunks);
    for (let chunk = 0; chunk < shape.chunks; chunk++) {
      request.ticket = expert;
      request.claim = firstClaim + chunk;
      request.intoBytes = (expert * shape.chunks + chunk) * PAGE_BYTES;
      queue.push(LANE_DEMAND, request, control, 1000);
    }
  }
  for (let expert = 0; expert < shape.experts; ) {
    const epoch = tickets.bell.enter();
    if (!tickets.isDone(expert)) tickets.bell.sleep(epoch, 1000);
    tickets.bell.leave();
    if (tickets.isDone(expert)) expert++;
  }
  return (performance.now() - began) * 1000;
}

async function measure(readers: number, path: string): Promise<void> {
  const io = loadIo();
  const control = new ControlBlock();
  const queue = FetchQueue.create(512, 512);
  const tickets = Tickets.create(16);
  const { fd } = io.open(path, false);
  const setup = {
    control: control.words,
    queue: queue.handle(),
    tickets: tickets.words,
    fds: [fd],
    segments: [allocateShared(64 * PAGE_BYTES)],
  };
  const filename = new URL('./workers/fetch.js', import.meta.resolve('#dist/index.js')).href;
  const pool = new Piscina({ filename, minThreads: readers, maxThreads: readers, atomics: 'disabled' });
  const tasks = Array.from({ length: readers }, () => pool.run(setup));
  await new Promise((resolve) => setTimeout(resolve, 1500));
  for (const shape of SHAPES) {
    const micros = new Float64Array(ROUNDS);
    for (let round = -WARM_UP; round < ROUNDS; round++) {
      const taken = handOff(queue, tickets, control, shape);
      if (round >= 0) micros[round] = taken;
    }
    micros.sort();
    const [p50, p90, p99] = [0.5, 0.9, 0.99].map((share) => percentile(micros, share));
    console.log(
      `${String(readers).padStart(2)} readers, ${shape.name.padEnd(22)} p50 ${p50} us  p90 ${p90}  p99 ${p99}`,
    );
  }
  control.shutDown();
  queue.interrupt();
  await Promise.all(tasks);
  await pool.destroy();
  io.close(fd);
}

const folder = mkdtempSync(join(tmpdir(), 'moestream-bench-'));
const path = join(folder, 'page');
writeFileSync(path, Buffer.alloc(PAGE_BYTES, 1));
for (const readers of [1, 4, 16]) await measure(readers, path);
rmSync(folder, { recursive: true });
