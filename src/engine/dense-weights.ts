/**
 * How the dense weights get into memory: through the readers and the queue that experts will use, as one ticket behind
 * those of the slots.
 *
 * It gives up when nothing has come for the read timeout, counted only in looks: while the main thread prefaults the slab
 * (34 s for 11 GB on a virtual machine whose host had to find the memory) it does not look, and readers may stand still with
 * it, for the same lock.
 */
import { MoestreamError } from '../errors.ts';
import type { IoAddon } from '../native.ts';
import { type FetchQueue, LANE_DEMAND } from '../pipeline/fetch-queue.ts';
import type { ResidentPlan } from '../pipeline/residents.ts';
import { NO_CLAIM, readError, type Tickets } from '../pipeline/tickets.ts';
import type { ReaderPool } from './stages.ts';

/** What a look counts for at most: they come every 5 ms, unless the thread was held up. */
const LOOK_MILLIS_MAX = 100;

export interface DenseReading {
  readonly io: IoAddon;
  readonly queue: FetchQueue;
  readonly tickets: Tickets;
  readonly readers: ReaderPool;
  readonly reads: ResidentPlan['reads'];
  readonly paths: readonly string[];
  readonly timeoutMillis: number;
}

/** Throws READ_FAILED, READ_SHORT or READ_TIMEOUT, or why a reader ended. */
export async function readDenseWeights(reading: DenseReading): Promise<void> {
  const { io, tickets, paths } = reading;
  const ticket = tickets.count - 1;
  tickets.openUnclaimed(ticket, reading.reads.length);
  await waitForAll(reading, ticket);
  if (!tickets.hasFailed(ticket)) return;
  const failure = tickets.failure(ticket);
  throw readError(failure, paths[failure.file]!, 'dense weights', (errno) => io.errnoName(errno));
}

async function waitForAll(reading: DenseReading, ticket: number): Promise<void> {
  const { queue, tickets, readers, reads, paths, timeoutMillis } = reading;
  const { bell } = tickets;
  let queued = 0;
  let leastLeft = reads.length;
  let idleMillis = 0;
  let lookedMillis = performance.now();
  for (;;) {
    const epoch = bell.enter();
    while (queued < reads.length) {
      if (!queue.tryPush(LANE_DEMAND, { ...reads[queued]!, ticket, claim: NO_CLAIM })) break;
      queued++;
    }
    // A full queue empties without ringing this bell, so look again soon.
    if (!tickets.isDone(ticket)) await readers.fuse.guard(bell.sleepAsync(epoch, 5));
    bell.leave();
    const left = tickets.pending(ticket);
    if (left === 0) return;
    const nowMillis = performance.now();
    idleMillis = left < leastLeft ? 0 : idleMillis + Math.min(nowMillis - lookedMillis, LOOK_MILLIS_MAX);
    leastLeft = left;
    lookedMillis = nowMillis;
    if (idleMillis > timeoutMillis) {
      throw new MoestreamError(
        'READ_TIMEOUT',
        `no dense weights of ${paths[0]} arrived within ${timeoutMillis} ms`,
      );
    }
  }
}
