/**
 * Tickets: how many chunks of a read are still to come, and what went wrong with it.
 *
 * One ticket per slot of the slab and one more for loading the dense weights. The issuer sets PENDING to the number of
 * chunks before it queues them; the reader that finishes the last one rings the bell. A failure is recorded before the
 * chunk is counted as done, and the issuer looks at it only when PENDING is 0, so it can never be missed and a slot
 * whose bytes did not all arrive can never look ready: the rule this project exists to keep.
 */
import { invariant, MoestreamError } from '../errors.ts';
import { DOORBELL_WORDS, Doorbell } from './doorbell.ts';
import { allocateWords } from './memory.ts';

/** Why a chunk failed. */
export const FAILURE_NONE = 0;
export const FAILURE_SYSTEM = 1;
export const FAILURE_SHORT = 2;
/** The pipeline stopped before the chunk was queued. */
export const FAILURE_ABANDONED = 3;

const PENDING = 0;
const FAILURE = 1;
const ERRNO = 2;
const FILE = 3;
const OFFSET_LOW = 4;
const OFFSET_HIGH = 5;
const WANTED_BYTES = 6;
const GOT_BYTES = 7;
/** Half a cache line: two tickets share one, which costs less than twice the table. */
const TICKET_WORDS = 8;

const WORD = 2 ** 32;

export interface ReadFailure {
  readonly kind: number;
  readonly errno: number;
  readonly file: number;
  readonly offsetBytes: number;
  readonly wantedBytes: number;
  readonly gotBytes: number;
}

export class Tickets {
  readonly words: Int32Array<SharedArrayBuffer>;
  readonly count: number;
  readonly bell: Doorbell;

  static create(count: number): Tickets {
    return new Tickets(allocateWords(DOORBELL_WORDS + count * TICKET_WORDS));
  }

  constructor(words: Int32Array<SharedArrayBuffer>) {
    this.words = words;
    this.count = (words.length - DOORBELL_WORDS) / TICKET_WORDS;
    this.bell = new Doorbell(words, 0);
  }

  /** Issuer: a read of `chunks` chunks begins. */
  open(ticket: number, chunks: number): void {
    const at = this.at(ticket);
    invariant(Atomics.load(this.words, at + PENDING) === 0, `ticket ${ticket} is in use`);
    Atomics.store(this.words, at + FAILURE, FAILURE_NONE);
    Atomics.store(this.words, at + PENDING, chunks);
  }

  isDone(ticket: number): boolean {
    return Atomics.load(this.words, this.at(ticket) + PENDING) === 0;
  }

  hasFailed(ticket: number): boolean {
    return Atomics.load(this.words, this.at(ticket) + FAILURE) !== FAILURE_NONE;
  }

  /** Reader: one chunk is done, well or badly. */
  completeChunk(ticket: number): void {
    if (Atomics.sub(this.words, this.at(ticket) + PENDING, 1) === 1) this.bell.ring();
  }

  /** Issuer: the last `chunks` chunks of an open ticket will never be queued; what they were for has failed. */
  abandon(ticket: number, chunks: number): void {
    Atomics.compareExchange(this.words, this.at(ticket) + FAILURE, FAILURE_NONE, FAILURE_ABANDONED);
    Atomics.sub(this.words, this.at(ticket) + PENDING, chunks);
  }

  /** Reader: records the first failure of a ticket; call before `completeChunk`. */
  recordFailure(ticket: number, failure: ReadFailure): void {
    const at = this.at(ticket);
    if (Atomics.compareExchange(this.words, at + FAILURE, FAILURE_NONE, failure.kind) !== FAILURE_NONE)
      return;
    this.words[at + ERRNO] = failure.errno;
    this.words[at + FILE] = failure.file;
    this.words[at + OFFSET_LOW] = (failure.offsetBytes % WORD) | 0;
    this.words[at + OFFSET_HIGH] = Math.floor(failure.offsetBytes / WORD);
    this.words[at + WANTED_BYTES] = failure.wantedBytes | 0;
    this.words[at + GOT_BYTES] = failure.gotBytes | 0;
  }

  /** Issuer, of a done ticket that has failed. */
  failure(ticket: number): ReadFailure {
    const at = this.at(ticket);
    return {
      kind: this.words[at + FAILURE]!,
      errno: this.words[at + ERRNO]!,
      file: this.words[at + FILE]!,
      offsetBytes: (this.words[at + OFFSET_LOW]! >>> 0) + this.words[at + OFFSET_HIGH]! * WORD,
      wantedBytes: this.words[at + WANTED_BYTES]! >>> 0,
      gotBytes: this.words[at + GOT_BYTES]! >>> 0,
    };
  }

  private at(ticket: number): number {
    return DOORBELL_WORDS + ticket * TICKET_WORDS;
  }
}

/** The typed error of a failed read: which file, where, and for whom. */
export function readError(
  failure: ReadFailure,
  path: string,
  purpose: string,
  errnoName: (errno: number) => string,
): MoestreamError {
  const place = `${path} at byte ${failure.offsetBytes} (${purpose})`;
  if (failure.kind === FAILURE_SHORT) {
    return new MoestreamError(
      'READ_SHORT',
      `got ${failure.gotBytes} of ${failure.wantedBytes} bytes of ${place}: the file has become shorter`,
      { hint: 'Something changed the model file while it was in use; restore it and start again.' },
    );
  }
  return new MoestreamError('READ_FAILED', `${errnoName(failure.errno)} reading ${place}`, {
    hint: 'The disk or file system failed the read; check the system log and the disk.',
  });
}
