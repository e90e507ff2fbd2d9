/**
 * The fetch stage: one of the readers. Takes a request, reads its pages into place, counts the chunk as done.
 *
 * Runs as one never-ending task of a piscina pool, so that its promise is its supervision. A reader writes only the
 * bytes of the place it was given and its ticket; it decides nothing.
 */
import { loadIo } from '../native.ts';
import { ControlBlock } from '../pipeline/control.ts';
import { emptyRequest, FetchQueue, type FetchQueueHandle } from '../pipeline/fetch-queue.ts';
import { FAILURE_SHORT, FAILURE_SYSTEM, Tickets } from '../pipeline/tickets.ts';

export interface FetchSetup {
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly queue: FetchQueueHandle;
  readonly tickets: Int32Array<SharedArrayBuffer>;
  /** Open file descriptors by file index; they belong to the engine. */
  readonly fds: readonly number[];
  readonly segments: readonly Uint8Array<SharedArrayBuffer>[];
}

/** What one reader did in its life. */
export interface FetchTotals {
  readonly reads: number;
  readonly bytesRead: number;
  readonly readMicros: number;
}

export default function readUntilShutdown(setup: FetchSetup): FetchTotals {
  const io = loadIo();
  const control = new ControlBlock(setup.control);
  const queue = new FetchQueue(setup.queue);
  const tickets = new Tickets(setup.tickets);
  const request = emptyRequest();
  let reads = 0;
  let bytesRead = 0;
  let readMillis = 0;
  while (queue.pop(request, control)) {
    const { ticket, file, offsetBytes, byteLength, requiredBytes, segment, intoBytes } = request;
    const beganMillis = performance.now();
    const result = io.readAt(setup.fds[file]!, offsetBytes, byteLength, setup.segments[segment]!, intoBytes);
    readMillis += performance.now() - beganMillis;
    if (result < requiredBytes) {
      const kind = result < 0 ? FAILURE_SYSTEM : FAILURE_SHORT;
      tickets.recordFailure(ticket, {
        kind,
        errno: result < 0 ? -result : 0,
        file,
        offsetBytes,
        wantedBytes: requiredBytes,
        gotBytes: Math.max(0, result),
      });
    }
    tickets.completeChunk(ticket);
    reads++;
    bytesRead += Math.max(0, result);
  }
  return { reads, bytesRead, readMicros: readMillis * 1000 };
}
