/**
 * Byte-pair encoding on token ids: the merges of a GGUF, and what they make of a run of bytes.
 *
 * Why our own: the usual package keys its merges by JSON texts. On a vocabulary of 248,320 that is 106 MB and a second
 * to load, a megabyte of blanks takes 10 s, and a piece that the vocabulary lacks vanishes from the text. Here a merge is
 * three numbers, 5 MB in all. Invariant: the ids of a run stand for exactly its bytes. That holds because a vocabulary
 * must have all 256 bytes and the result of every merge, and one that has not is refused.
 *
 * The rule is that of every BPE: of all neighbours that a merge exists for, join those of the lowest rank, the leftmost
 * first, until none is left. A heap finds them, so n bytes take n log n steps whatever they are.
 */
import { alphabetOfByte } from './byte-alphabet.ts';
import type { Metadata, TextList } from './model-source.ts';

const TOKENS_KEY = 'tokenizer.ggml.tokens';
const MERGES_KEY = 'tokenizer.ggml.merges';
/** A heap entry is rank * POSITIONS + position: 2^24 ranks (the longest array read) x 2^29 positions are 2^53. */
const POSITIONS = 2 ** 29;
/** Runs up to here share one workspace; a longer one gets its own and leaves it to the collector. */
const SHARED_BYTES = 4096;

/** The symbols of one run as a linked list, and the merges that could come next as a heap. */
class Workspace {
  readonly ids: Int32Array;
  readonly next: Int32Array;
  readonly previous: Int32Array;
  /** n bytes have n - 1 neighbours, and each of at most n - 1 merges makes two new ones. */
  readonly #heap: Float64Array;
  #count = 0;

  constructor(byteLength: number) {
    this.ids = new Int32Array(byteLength);
    this.next = new Int32Array(byteLength);
    this.previous = new Int32Array(byteLength);
    this.#heap = new Float64Array(3 * byteLength);
  }

  push(entry: number): void {
    const heap = this.#heap;
    let at = this.#count++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent]! <= entry) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = entry;
  }

  /** The smallest entry, or -1. */
  pop(): number {
    if (this.#count === 0) return -1;
    const heap = this.#heap;
    const smallest = heap[0]!;
    const count = --this.#count;
    const last = heap[count]!;
    let at = 0;
    for (let child = 1; child < count; child = 2 * at + 1) {
      if (child + 1 < count && heap[child + 1]! < heap[child]!) child++;
      if (heap[child]! >= last) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return smallest;
  }
}

export class BytePairs {
  /** (256): the token of each byte. */
  readonly #byteIds: Int32Array;
  /** By rank: what is joined, and what it becomes. */
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #result: Int32Array;
  /** A hash table of ranks + 1 by (left, right); at most half full. */
  readonly #slots: Int32Array;
  // Drawn anew each time, so that no file can be made whose merges all fall into one slot.
  readonly #leftFactor = (Math.random() * 2 ** 32) | 1;
  readonly #rightFactor = (Math.random() * 2 ** 32) | 1;
  readonly #shift: number;
  readonly #shared = new Workspace(SHARED_BYTES);

  constructor(metadata: Metadata) {
    const tokens = metadata.strings(TOKENS_KEY);
    const merges = metadata.strings(MERGES_KEY);
    const idByText = indexTexts(tokens, metadata);
    this.#byteIds = findBytes(idByText, metadata);
    this.#left = new Int32Array(merges.length);
    this.#right = new Int32Array(merges.length);
    this.#result = new Int32Array(merges.length);
    const bits = Math.max(4, Math.ceil(Math.log2(2 * merges.length + 1)));
    this.#shift = 32 - bits;
    this.#slots = new Int32Array(2 ** bits);
    for (let rank = 0; rank < merges.length; rank++)
      this.#addMerge(merges.latin1At(rank), rank, idByText, metadata);
  }

  /** Appends the ids of `bytes` to `into`. */
  encode(bytes: Uint8Array, into: number[]): void {
    const work = bytes.length <= SHARED_BYTES ? this.#shared : new Workspace(bytes.length);
    const last = bytes.length - 1;
    for (let at = 0; at <= last; at++) {
      work.ids[at] = this.#byteIds[bytes[at]!]!;
      work.next[at] = at < last ? at + 1 : -1;
      work.previous[at] = at - 1;
    }
    for (let at = 0; at < last; at++) this.#offer(work, at, at + 1);
    for (let entry = work.pop(); entry >= 0; entry = work.pop()) this.#join(work, entry);
    for (let at = bytes.length > 0 ? 0 : -1; at >= 0; at = work.next[at]!) into.push(work.ids[at]!);
  }

  #join(work: Workspace, entry: number): void {
    const rank = Math.floor(entry / POSITIONS);
    const at = entry - rank * POSITIONS;
    const right = work.next[at]!;
    // Either neighbour may have been joined to something else since this entry was made.
    if (right < 0 || work.ids[at] !== this.#left[rank] || work.ids[right] !== this.#right[rank]) return;
    const after = work.next[right]!;
    work.ids[at] = this.#result[rank]!;
    work.ids[right] = -1;
    work.next[at] = after;
    if (after >= 0) {
      work.previous[after] = at;
      this.#offer(work, at, after);
    }
    const before = work.previous[at]!;
    if (before >= 0) this.#offer(work, before, at);
  }

  #offer(work: Workspace, left: number, right: number): void {
    const rank = this.#rankOf(work.ids[left]!, work.ids[right]!);
    if (rank >= 0) work.push(rank * POSITIONS + left);
  }

  /** The slot that holds the merge of (left, right), or the empty one where it would go. */
  #slotOf(left: number, right: number): number {
    const mask = this.#slots.length - 1;
    const hash = (Math.imul(left, this.#leftFactor) + Math.imul(right, this.#rightFactor)) | 0;
    for (let slot = hash >>> this.#shift; ; slot = (slot + 1) & mask) {
      const rank = this.#slots[slot]! - 1;
      if (rank < 0 || (this.#left[rank] === left && this.#right[rank] === right)) return slot;
    }
  }

  #rankOf(left: number, right: number): number {
    return this.#slots[this.#slotOf(left, right)]! - 1;
  }

  #addMerge(merge: string, rank: number, idByText: ReadonlyMap<string, number>, metadata: Metadata): void {
    // The first piece is never empty, so a blank in first place belongs to it.
    const blank = merge.indexOf(' ', 1);
    const key = `${MERGES_KEY}[${rank}]`;
    if (blank < 0) throw metadata.invalid(key, 'is not two pieces with a blank between them');
    const pieces = [merge.slice(0, blank), merge.slice(blank + 1)] as const;
    const left = idByText.get(pieces[0]);
    const right = idByText.get(pieces[1]);
    const result = idByText.get(pieces[0] + pieces[1]);
    if (left === undefined || right === undefined || result === undefined) {
      throw metadata.invalid(key, `joins or makes a piece that is not among the ${idByText.size} tokens`);
    }
    this.#left[rank] = left;
    this.#right[rank] = right;
    this.#result[rank] = result;
    // Of two merges of the same pieces the first, which ranks lower, counts.
    const slot = this.#slotOf(left, right);
    if (this.#slots[slot] === 0) this.#slots[slot] = rank + 1;
  }
}

/** Texts as Latin-1, one character a byte: they are only compared, never shown. */
function indexTexts(tokens: TextList, metadata: Metadata): Map<string, number> {
  const idByText = new Map<string, number>();
  for (let id = 0; id < tokens.length; id++) {
    const text = tokens.latin1At(id);
    const first = idByText.get(text);
    if (first !== undefined && text !== '') {
      throw metadata.invalid(`${TOKENS_KEY}[${id}]`, `is the same text as token ${first}`);
    }
    idByText.set(text, id);
  }
  return idByText;
}

function findBytes(idByText: ReadonlyMap<string, number>, metadata: Metadata): Int32Array {
  return Int32Array.from({ length: 256 }, (_, byte) => {
    const id = idByText.get(Buffer.from(alphabetOfByte(byte)).toString('latin1'));
    if (id === undefined) throw metadata.invalid(TOKENS_KEY, `has no token for the byte ${byte}`);
    return id;
  });
}
