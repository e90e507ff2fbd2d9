/**
 * Makes the bytes of tensors, in pieces, faster than disks take them.
 *
 * Why a pool: making random blocks runs at 0.3 to 1 GB/s, random floats at 0.1, and good disks take 3. So for every type
 * and deviation 4 MiB of blocks are made once, and a large tensor is copied together from stretches of it that begin at
 * random blocks: 12 GB/s on one core. The pool is larger than the window of fast compressors: gzip takes nothing off.
 * Invariant: a tensor's bytes depend on seed, name, shape and type only; and no two experts, nor two rows of a
 * vocabulary matrix, begin alike: their first 64 bytes are made for them alone.
 */
import type { GgmlType } from '#dist/model/ggml-types.js';
import { fillRandomBlocks } from './blocks.ts';
import { Random } from './random.ts';
import type { Noise, Values } from './tensors.ts';

/** Below this a tensor is made without a pool: it would take longer to make the pool. */
const POOL_BYTES = 4 << 20;
/** Longest stretch copied from one place in the pool. */
const STRETCH_BYTES = 256 << 10;
/** No copy has these first bytes of what has to be distinct. */
const DISTINCT_BYTES = 64;
const VALUES_PER_PIECE = 1 << 16;

export interface WeightsRequest {
  readonly name: string;
  readonly shape: readonly number[];
  readonly type: GgmlType;
  readonly byteLength: number;
  readonly content: Noise | Values;
}

export class WeightMaker {
  readonly #seed: number;
  readonly #pools = new Map<string, Uint8Array>();

  constructor(seed: number) {
    this.#seed = seed;
  }

  /** The tensor's bytes in order. A piece is valid until the next one is asked for. */
  pieces(tensor: WeightsRequest): Generator<Uint8Array> {
    const random = new Random(`${this.#seed} tensor ${tensor.name}`);
    if (tensor.content.kind === 'values') return drawnPieces(tensor, tensor.content, random);
    if (tensor.byteLength <= POOL_BYTES) return freshPieces(tensor, tensor.content, random);
    const pool = this.#pool(tensor.type, tensor.content.std);
    return pooledPieces(tensor, tensor.content, pool, random);
  }

  #pool(type: GgmlType, std: number): Uint8Array {
    const key = `${type.name} ${std}`;
    const known = this.#pools.get(key);
    if (known !== undefined) return known;
    const pool = new Uint8Array(Math.floor(POOL_BYTES / type.blockBytes) * type.blockBytes);
    fillRandomBlocks(pool, type, std, new Random(`${this.#seed} pool ${key}`));
    this.#pools.set(key, pool);
    return pool;
  }
}

function* drawnPieces(tensor: WeightsRequest, { draw }: Values, random: Random): Generator<Uint8Array> {
  const count = tensor.byteLength / 4;
  for (let done = 0; done < count; done += VALUES_PER_PIECE) {
    const piece = Buffer.alloc(4 * Math.min(VALUES_PER_PIECE, count - done));
    for (let at = 0; at < piece.length; at += 4) piece.writeFloatLE(draw(random), at);
    yield piece;
  }
}

function* freshPieces(tensor: WeightsRequest, { std }: Noise, random: Random): Generator<Uint8Array> {
  const bytes = new Uint8Array(tensor.byteLength);
  fillRandomBlocks(bytes, tensor.type, std, random);
  yield bytes;
}

function* pooledPieces(
  tensor: WeightsRequest,
  { std, distinctRows }: Noise,
  pool: Uint8Array,
  random: Random,
): Generator<Uint8Array> {
  const { type, shape, byteLength } = tensor;
  const sectionBytes = (shape[0]! / type.blockSize) * type.blockBytes * distinctRows;
  const stampBlocks = Math.min(Math.ceil(DISTINCT_BYTES / type.blockBytes), sectionBytes / type.blockBytes);
  const stamp = new Uint8Array(stampBlocks * type.blockBytes);
  for (let section = 0; section < byteLength; section += sectionBytes) {
    fillRandomBlocks(stamp, type, std, random);
    yield stamp;
    for (let left = sectionBytes - stamp.length; left > 0; ) {
      const stretch = randomStretch(pool, type.blockBytes, left, random);
      left -= stretch.length;
      yield stretch;
    }
  }
}

/** Whole blocks from anywhere in the pool, `wantedBytes` of them unless that is too long for one stretch. */
function randomStretch(
  pool: Uint8Array,
  blockBytes: number,
  wantedBytes: number,
  random: Random,
): Uint8Array {
  const stretchBlocks = Math.floor(Math.min(wantedBytes, STRETCH_BYTES) / blockBytes);
  const places = pool.length / blockBytes - stretchBlocks + 1;
  const start = random.below(places) * blockBytes;
  return pool.subarray(start, start + stretchBlocks * blockBytes);
}
