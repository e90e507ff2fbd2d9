/** What every read engine is given, does and reports, whichever way it reads. */
import type { FetchQueueHandle, ReadRequest } from '../pipeline/fetch-queue.ts';
import { FAILURE_SHORT, FAILURE_SYSTEM, type Tickets } from '../pipeline/tickets.ts';
import type { Observation } from '../pipeline/trace.ts';

export interface FetchSetup {
  readonly control: Int32Array<SharedArrayBuffer>;
  readonly queue: FetchQueueHandle;
  readonly tickets: Int32Array<SharedArrayBuffer>;
  /** Open file descriptors by file index; they belong to the engine. */
  readonly fds: readonly number[];
  readonly segments: readonly Uint8Array<SharedArrayBuffer>[];
  readonly observation?: Observation;
}

/** What one reader thread did in its life. */
export interface FetchTotals {
  readonly reads: number;
  readonly bytesRead: number;
  /** Time inside reads, summed over the reads that were under way together. */
  readonly readMicros: number;
  /** Something the user should know of how it read. */
  readonly notice: string | undefined;
}

/** Records why a chunk did not get the bytes it needs. `result` is the number of bytes, or -errno. */
export function recordShortfall(tickets: Tickets, request: ReadRequest, result: number): void {
  tickets.recordFailure(request.ticket, {
    kind: result < 0 ? FAILURE_SYSTEM : FAILURE_SHORT,
    errno: result < 0 ? -result : 0,
    file: request.file,
    offsetBytes: request.offsetBytes,
    gotBytes: Math.max(0, result),
  });
}
