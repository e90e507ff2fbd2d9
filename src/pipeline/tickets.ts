/**
 * Tickets: which chunks of a read are taken, how many are still to come, and what went wrong.
 *
 * One ticket per slot of the slab and one more for loading the dense weights. The issuer opens a ticket before it queues
 * its chunks; the reader that finishes the last one rings the bell. A failure is recorded before the chunk is counted as
 * done, and the issuer looks at it only when PENDING is 0, so it can never be missed and a slot whose bytes did not all
 * arrive can never look ready: the rule this project exists to keep.
 *
 * CLAIMS holds the ticket's generation and a bit per chunk. A reader must win the bit of a chunk before it reads it. So a
 * request may stand in the queue twice (a prefetch that became a demand is queued again in the faster lane) or be out of
 * date (its slot has been given to another expert), and each chunk is still read exactly once, or not at all: whoever
 * finds the bit taken or the generation changed drops the request. Cancelling is winning the bits oneself.
 */
import { invariant, MoestreamError } from '../errors.ts';
import { DOORBELL_WORDS, Doorbell } from './doorbell.ts';
import { CHUNKS_MAX } from './expert-layout.ts';
import { allocateWords } from './memory.ts';

/** Why a chunk failed. */
export const FAILURE_NONE = 0;
export const FAILURE_SYSTEM = 1;
export const FAILURE_SHORT = 2;
/** The chunk was never read: the pipeline stopped, or nobody wanted it any more. */
export const FAILURE_ABANDONED = 3;

const PENDING = 0;
const CLAIMS = 1;
const FAILURE = 2;
const ERRNO = 3;
const FILE = 4;
const OFFSET_LOW = 5;
const OFFSET_HIGH = 6;
const GOT_BYTES = 7;
/** Half a cache line: two tickets share one, which costs less than twice the table. */
const TICKET_WORDS = 8;

const WORD = 2 ** 32;
const CLAIM_MASK = 2 ** CHUNKS_MAX - 1;
const GENERATION_MASK = 2 ** (31 - CHUNKS_MAX) - 1;

/** A request that needs no claim: the dense weights, which nobody promotes or cancels. */
export const NO_CLAIM = -1;

export interface ReadFailure {
  readonly kind: number;
  readonly errno: number;
  readonly file: number;
  readonly offsetBytes: number;
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

  /** Issuer: a read of `chunks` chunks begins that needs no claims. */
  openUnclaimed(ticket: number, chunks: number): void {
    const at = this.at(ticket);
    invariant(Atomics.load(this.words, at + PENDING) === 0, `ticket ${ticket} is in use`);
    Atomics.store(this.words, at + FAILURE, FAILURE_NONE);
    Atomics.store(this.words, at + PENDING, chunks);
  }

  /** Issuer: a read of `chunks` chunks begins. Returns the claim of its chunk 0; that of chunk i is i more. */
  open(ticket: number, chunks: number): number {
    invariant(chunks >= 1 && chunks <= CHUNKS_MAX, `a read of ${chunks} chunks`);
    this.openUnclaimed(ticket, chunks);
    const at = this.at(ticket);
    const generation = ((this.words[at + CLAIMS]! >>> CHUNKS_MAX) + 1) & GENERATION_MASK;
    // The bits of chunks that the read does not have are taken from the start.
    Atomics.store(this.words, at + CLAIMS, (generation << CHUNKS_MAX) | (CLAIM_MASK & ~(2 ** chunks - 1)));
    return this.firstClaim(ticket);
  }

  /** Reader: whether this chunk is still to be read, and by this reader from now on. */
  claim(ticket: number, claim: number): boolean {
    if (claim === NO_CLAIM) return true;
    const at = this.at(ticket) + CLAIMS;
    const bit = 1 << (claim % CHUNKS_MAX);
    const generation = Math.floor(claim / CHUNKS_MAX);
    for (;;) {
      const seen = Atomics.load(this.words, at);
      if (seen >>> CHUNKS_MAX !== generation || (seen & bit) !== 0) return false;
      if (Atomics.compareExchange(this.words, at, seen, seen | bit) === seen) return true;
    }
  }

  /** Issuer: the claim of chunk 0 of an open ticket. */
  firstClaim(ticket: number): number {
    return (this.words[this.at(ticket) + CLAIMS]! >>> CHUNKS_MAX) * CHUNKS_MAX;
  }

  /** Issuer: the chunks of an open ticket that no reader has taken, as bits. */
  unclaimed(ticket: number): number {
    return ~Atomics.load(this.words, this.at(ticket) + CLAIMS) & CLAIM_MASK;
  }

  /**
   * Issuer: takes every chunk that no reader has taken, so that none will, and marks the read as failed if there was one.
   * Chunks that are being read still end by themselves. Returns the chunks that were taken, as bits.
   */
  cancel(ticket: number): number {
    const at = this.at(ticket);
    for (;;) {
      const seen = Atomics.load(this.words, at + CLAIMS);
      const open = ~seen & CLAIM_MASK;
      if (open === 0) return 0;
      if (Atomics.compareExchange(this.words, at + CLAIMS, seen, seen | CLAIM_MASK) !== seen) continue;
      Atomics.compareExchange(this.words, at + FAILURE, FAILURE_NONE, FAILURE_ABANDONED);
      Atomics.sub(this.words, at + PENDING, bitCount(open));
      return open;
    }
  }

  /** Chunks that are still to come. */
  pending(ticket: number): number {
    return Atomics.load(this.words, this.at(ticket) + PENDING);
  }

  isDone(ticket: number): boolean {
    return this.pending(ticket) === 0;
  }

  hasFailed(ticket: number): boolean {
    return Atomics.load(this.words, this.at(ticket) + FAILURE) !== FAILURE_NONE;
  }

  /** Reader: one chunk is done, well or badly. */
  completeChunk(ticket: number): void {
    if (this.countChunk(ticket)) this.bell.ring();
  }

  /** The same for a reader that rings the bell itself, after several. Returns whether it was the last of its ticket. */
  countChunk(ticket: number): boolean {
    return Atomics.sub(this.words, this.at(ticket) + PENDING, 1) === 1;
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
      gotBytes: this.words[at + GOT_BYTES]! >>> 0,
    };
  }

  private at(ticket: number): number {
    return DOORBELL_WORDS + ticket * TICKET_WORDS;
  }
}

export function bitCount(bits: number): number {
  let count = 0;
  for (let left = bits; left !== 0; left &= left - 1) count++;
  return count;
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
      `only ${failure.gotBytes} bytes of ${place}: the file has become shorter`,
      {
        hint: 'Something changed the model file while it was in use; restore it and start again.',
      },
    );
  }
  return new MoestreamError('READ_FAILED', `${errnoName(failure.errno)} reading ${place}`, {
    hint: 'The disk or file system failed the read; check the system log and the disk.',
  });
}
