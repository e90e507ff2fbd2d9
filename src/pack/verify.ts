/**
 * Whether the bytes on disk are the right ones: of a packed folder by its checksums, of a plain model by reading it all.
 *
 * Damage does not end the work: every expert is looked at, and what is bad is listed. A plain GGUF has no checksums, so
 * all that can be said is that every byte reads, and its SHA-256, to be compared with the one its publisher gives.
 */
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { MoestreamError } from '../errors.ts';
import { type Model, openModel } from '../model/model.ts';
import { hexOfCrc, type Packed, type PackedDense, packedExpertBytes } from '../model/packed.ts';
import { type Place, partsOf } from '../model/places.ts';
import { IN_FLIGHT, inLanes, PieceReader, piecesOf, readAhead, readBuffer } from './disk.ts';
import { Work, type WorkOptions } from './progress.ts';

/** A piece that is not as it should be. */
export interface Damage {
  readonly file: string;
  readonly offsetBytes: number;
  /** Of a packed expert. */
  readonly layer?: number;
  readonly expert?: number;
  /** Of a plain model: the tensor that the unreadable bytes belong to. */
  readonly tensor?: string;
  readonly problem: string;
}

export interface VerifiedFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** Of a plain model, unless bytes of it could not be read. */
  readonly sha256?: string;
}

export interface VerifyResult {
  readonly kind: 'packed' | 'plain';
  readonly ok: boolean;
  readonly files: readonly VerifiedFile[];
  readonly totalBytes: number;
  /** Compared with their checksums; 0 for a plain model. */
  readonly experts: number;
  readonly damageCount: number;
  /** The first ones in file order. */
  readonly damages: readonly Damage[];
}

const DAMAGES_LISTED = 10;

/** Where the experts of a layer lie in their file. */
interface Strided {
  readonly experts: number;
  readonly expertBytes: number;
  readonly strideBytes: number;
}

/** The checksum of every expert of a layer's file, or the error of one that cannot be read. */
export async function expertCrcs(
  reader: PieceReader,
  layer: Strided,
  onExpert: () => void,
): Promise<(number | MoestreamError)[]> {
  const crcs = new Array<number | MoestreamError>(layer.experts).fill(0);
  const buffers = Array.from({ length: IN_FLIGHT }, () => readBuffer(layer.expertBytes));
  await inLanes(layer.experts, async (expert, lane) => {
    try {
      const bytes = await reader.read(expert * layer.strideBytes, layer.expertBytes, buffers[lane]!);
      crcs[expert] = crc32(bytes);
    } catch (error) {
      if (!MoestreamError.is(error)) throw error;
      crcs[expert] = error;
    }
    onExpert();
  });
  return crcs;
}

/** The checksum of a whole file. Throws when a byte cannot be read. */
export async function fileCrc(
  reader: PieceReader,
  sizeBytes: number,
  onBytes: (byteCount: number) => void,
): Promise<number> {
  let crc = 0;
  for await (const { bytes, error } of readAhead(piecesOf(reader, 0, sizeBytes))) {
    if (bytes === undefined) throw error;
    crc = crc32(bytes, crc);
    onBytes(bytes.length);
  }
  return crc;
}

/** Verifies the model at `path`. Resolves whether it is whole or not; throws when it cannot be opened, or ABORTED. */
export async function verify(path: string, options: WorkOptions = {}): Promise<VerifyResult> {
  const model = openModel(path);
  const files = [...model.files, ...(model.packed?.texts ?? [])];
  const totalBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  const work = new Work(totalBytes, options);
  return model.packed === undefined
    ? verifyPlain(model, work, options)
    : verifyPacked(model.packed, work, options);
}

class Damages {
  count = 0;
  readonly listed: Damage[] = [];

  add(damage: Damage): void {
    this.count++;
    if (this.listed.length < DAMAGES_LISTED) this.listed.push(damage);
  }
}

async function withReader<T>(path: string, work: (reader: PieceReader) => Promise<T>): Promise<T> {
  const reader = new PieceReader(path);
  try {
    return await work(reader);
  } finally {
    reader.close();
  }
}

/** A file with one checksum. */
async function verifyWhole(
  path: string,
  { file, sizeBytes, crc32: expected }: PackedDense,
  work: Work,
  damages: Damages,
): Promise<void> {
  await withReader(path, async (reader) => {
    try {
      const found = await fileCrc(reader, sizeBytes, (bytes) => work.advance(bytes));
      if (found === expected) return;
      const problem = `checksum ${hexOfCrc(found)}, the manifest has ${hexOfCrc(expected)}`;
      damages.add({ file, offsetBytes: 0, problem });
    } catch (error) {
      if (!isReadError(error)) throw error;
      damages.add({ file, offsetBytes: 0, problem: error.message });
    }
  });
}

async function verifyPacked(packed: Packed, work: Work, options: WorkOptions): Promise<VerifyResult> {
  const damages = new Damages();
  for (const whole of [packed.dense, ...packed.texts]) {
    await verifyWhole(join(dirname(packed.manifestPath), whole.file), whole, work, damages);
    options.onFile?.(whole.file, whole.sizeBytes);
  }
  let experts = 0;
  for (const [index, layer] of packed.layers.entries()) {
    const { path, sizeBytes } = packed.files[1 + index]!;
    const { strideBytes } = layer;
    const strided = { experts: layer.experts, strideBytes, expertBytes: packedExpertBytes(layer) };
    const crcs = await withReader(path, (reader) =>
      expertCrcs(reader, strided, () => work.advance(strideBytes)),
    );
    for (const [expert, found] of crcs.entries()) {
      const expected = layer.crc32[expert]!;
      if (found === expected) continue;
      const problem =
        typeof found === 'number'
          ? `checksum ${hexOfCrc(found)}, the manifest has ${hexOfCrc(expected)}`
          : found.message;
      damages.add({ file: layer.file, offsetBytes: expert * strideBytes, layer: index, expert, problem });
    }
    experts += layer.experts;
    options.onFile?.(layer.file, sizeBytes);
  }
  return {
    kind: 'packed',
    ok: damages.count === 0,
    files: packed.files,
    totalBytes: work.totalBytes,
    experts,
    damageCount: damages.count,
    damages: damages.listed,
  };
}

async function verifyPlain(model: Model, work: Work, options: WorkOptions): Promise<VerifyResult> {
  const damages = new Damages();
  const files: VerifiedFile[] = [];
  for (const [index, { path, sizeBytes }] of model.files.entries()) {
    const hash = createHash('sha256');
    let isWhole = true;
    await withReader(path, async (reader) => {
      for await (const { piece, bytes, error } of readAhead(piecesOf(reader, 0, sizeBytes))) {
        if (bytes !== undefined) hash.update(bytes);
        else {
          if (!isReadError(error)) throw error;
          isWhole = false;
          const { offsetBytes } = piece;
          const tensor = tensorAt(model, index, offsetBytes, offsetBytes + piece.byteLength);
          damages.add({
            file: path,
            offsetBytes,
            ...(tensor === undefined ? {} : { tensor }),
            problem: error.message,
          });
        }
        work.advance(piece.byteLength);
      }
    });
    files.push({ path, sizeBytes, ...(isWhole ? { sha256: hash.digest('hex') } : {}) });
    options.onFile?.(path, sizeBytes);
  }
  return {
    kind: 'plain',
    ok: damages.count === 0,
    files,
    totalBytes: work.totalBytes,
    experts: 0,
    damageCount: damages.count,
    damages: damages.listed,
  };
}

function isReadError(error: unknown): error is MoestreamError {
  return MoestreamError.is(error) && (error.code === 'READ_FAILED' || error.code === 'READ_SHORT');
}

/** The first tensor with bytes in a span of a file. */
function tensorAt(model: Model, file: number, fromBytes: number, toBytes: number): string | undefined {
  const { source } = model;
  for (const tensor of source.tensors.values()) {
    const isHit = partsOf<Place>(tensor).some(
      (part) =>
        part.file === file && part.offsetBytes < toBytes && part.offsetBytes + part.byteLength > fromBytes,
    );
    if (isHit) return source.ownName?.(tensor.name) ?? tensor.name;
  }
  return undefined;
}
