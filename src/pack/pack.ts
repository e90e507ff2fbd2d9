/**
 * Packs a model: every expert becomes one contiguous, page-aligned piece of a file; docs/format.md has the format.
 *
 * File by file: written, synced, read back past the page cache, compared with the checksums of what was read from the
 * source, and only then entered in the journal. The manifest is last, by renaming, so a folder with a manifest is whole.
 * Killed at any point, the same command goes on at the file it was in; an unfinished file is written anew, at most one
 * layer of some gigabytes. Invariant: the result depends on the model alone, not on when it was interrupted. Memory: four
 * experts twice (44 MB of 397B's) whatever the size of the model.
 */
import { readdirSync, readFileSync, renameSync, rmSync, statfsSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { crc32 } from 'node:zlib';
import { MoestreamError } from '../errors.ts';
import { type Model, openModel } from '../model/model.ts';
import {
  hexOfCrc,
  JOURNAL_NAME,
  MANIFEST_NAME,
  PACKED_CHECKPOINT_VERSION,
  PACKED_FORMAT,
  PACKED_MATRICES,
  PACKED_VERSION,
  readPacked,
  STRIDE_ALIGN_BYTES,
} from '../model/packed.ts';
import { bytesOf, partsOf, type StridedPlace } from '../model/places.ts';
import type { ExpertMatrix, ExpertTensors } from '../model/tensor-map.ts';
import { allocateShared, formatBytes, roundUp } from '../pipeline/memory.ts';
import { type TextFile, textsOf } from './checkpoint-texts.ts';
import { planDenseCheckpoint } from './dense-checkpoint.ts';
import { type DensePlan, planDense } from './dense-gguf.ts';
import {
  codeOf,
  FileWriter,
  IN_FLIGHT,
  inLanes,
  makeFolder,
  type Piece,
  PieceReader,
  piecesOf,
  readAhead,
  readBuffer,
  syncFolder,
  writeError,
} from './disk.ts';
import { fingerprintOf } from './fingerprint.ts';
import { Journal, type JournalHead, readJournal, removeJournal } from './journal.ts';
import { LOCK_NAME, takeLock } from './lock.ts';
import { Work, type WorkOptions } from './progress.ts';
import { expertCrcs, fileCrc } from './verify.ts';

export interface PackResult {
  readonly folder: string;
  readonly layers: number;
  /** Per layer. */
  readonly experts: number;
  /** All files of the packed model but the manifest. */
  readonly totalBytes: number;
  /** Of these, what this run has written; the rest was there. */
  readonly writtenBytes: number;
  readonly fingerprint: string;
}

interface LayerPlan {
  readonly file: string;
  readonly tensors: ExpertTensors;
  readonly expertBytes: number;
  readonly strideBytes: number;
  readonly sizeBytes: number;
}

interface PackPlan {
  readonly dense: DensePlan;
  readonly texts: readonly TextFile[];
  readonly isCheckpoint: boolean;
  readonly layers: readonly LayerPlan[];
  readonly totalBytes: number;
}

/** Journal, manifest and what the file system needs for itself. */
const SPARE_BYTES = 16e6;

/** Packs the model at `source` into `folder`, or goes on with it. Throws typed errors, and ABORTED by the signal. */
export async function pack(source: string, folder: string, options: WorkOptions = {}): Promise<PackResult> {
  const model = openModel(source);
  if (model.packed !== undefined) throw new MoestreamError('USAGE', `${source} is packed already`);
  makeFolder(resolve(folder));
  const unlock = takeLock(folder);
  try {
    return await new Packer(model, folder, options).run();
  } finally {
    unlock();
  }
}

function planPack(model: Model): PackPlan {
  const { source } = model;
  const experts = new Set(model.tensors.expertTensors);
  const isCheckpoint = 'stored' in source;
  const dense = isCheckpoint ? planDenseCheckpoint(source, experts) : planDense(source, experts);
  const texts = isCheckpoint ? textsOf(source) : [];
  const layers = model.tensors.experts.map((tensors, layer) => {
    const expertBytes = PACKED_MATRICES.reduce((sum, part) => sum + bytesOf(tensors[part]), 0);
    const strideBytes = roundUp(expertBytes, STRIDE_ALIGN_BYTES);
    const file = `experts-${String(layer).padStart(3, '0')}.bin`;
    const sizeBytes = strideBytes * model.hyperparameters.experts;
    return { file, tensors, expertBytes, strideBytes, sizeBytes };
  });
  const totalBytes = [dense, ...texts, ...layers].reduce((sum, file) => sum + file.sizeBytes, 0);
  return { dense, texts, layers, totalBytes, isCheckpoint };
}

class Packer {
  private readonly model: Model;
  private readonly folder: string;
  private readonly options: WorkOptions;
  private readonly plan: PackPlan;
  private readonly head: JournalHead;
  /** Checksums of finished files. */
  private readonly done = new Map<string, readonly number[]>();
  private readonly sources: PieceReader[] = [];
  private readonly work: Work;
  private writtenBytes = 0;
  private noticed = false;

  constructor(model: Model, folder: string, options: WorkOptions) {
    this.model = model;
    this.folder = folder;
    this.options = options;
    this.plan = planPack(model);
    const files = stampsOf(model);
    this.head = { fingerprint: fingerprintOf(model.source), files };
    this.work = new Work(this.plan.totalBytes, options);
  }

  async run(): Promise<PackResult> {
    if (this.isComplete()) return this.result();
    const journal = this.resume();
    try {
      await syncFolder(this.folder);
      this.refuseFullDisk();
      for (const file of this.model.files) this.sources.push(new PieceReader(file.path));
      await this.packFiles(journal);
      if (!sameStamps(stampsOf(this.model), this.head.files)) {
        throw new MoestreamError(
          'PACK_REFUSED',
          `${this.model.files[0]!.path}: the model was changed while it was being packed`,
          { hint: 'Run the same command again: it starts over.' },
        );
      }
      await this.writeManifest();
    } finally {
      journal.close();
      for (const source of this.sources) source.close();
    }
    // What the engine will do first: the folder must pass before it is called done.
    openModel(this.folder);
    removeJournal(this.folder);
    return this.result();
  }

  private result(): PackResult {
    return {
      folder: this.folder,
      layers: this.plan.layers.length,
      experts: this.model.hyperparameters.experts,
      totalBytes: this.plan.totalBytes,
      writtenBytes: this.writtenBytes,
      fingerprint: this.head.fingerprint,
    };
  }

  private path(name: string): string {
    return join(this.folder, name);
  }

  /** Whether the folder holds this model already, packed to the end. */
  private isComplete(): boolean {
    if (statSync(this.path(MANIFEST_NAME), { throwIfNoEntry: false }) === undefined) return false;
    const { source } = readPacked(this.folder);
    if (source.fingerprint !== this.head.fingerprint) throw this.otherModel(source.files[0]!.name);
    // Killed between renaming the manifest and removing this.
    removeJournal(this.folder);
    return true;
  }

  private otherModel(name: string): MoestreamError {
    const here = basename(this.model.files[0]!.path);
    return new MoestreamError(
      'PACK_REFUSED',
      `${this.folder} belongs to another model (${name}), not to this ${here}`,
      { hint: 'Pack into another folder, or delete this one first.' },
    );
  }

  /** Finds what is done. Anything in the folder that no journal accounts for is left alone and refused. */
  private resume(): Journal {
    const before = readJournal(this.folder);
    if (before?.head === undefined) {
      this.refuseForeignFiles();
      return Journal.open(this.folder, this.head, 0);
    }
    if (before.head.fingerprint !== this.head.fingerprint) throw this.otherModel(before.head.files[0]!.name);
    if (!sameStamps(before.head.files, this.head.files)) {
      this.options.onNotice?.('the model file has another date than when its packing began: starting over');
      return Journal.open(this.folder, this.head, 0);
    }
    const expected = new Map([
      [this.plan.dense.file, { sizeBytes: this.plan.dense.sizeBytes, count: 1 }],
      ...this.plan.texts.map(({ name, sizeBytes }) => [name, { sizeBytes, count: 1 }] as const),
      ...this.plan.layers.map(
        ({ file, sizeBytes }) => [file, { sizeBytes, count: this.model.hyperparameters.experts }] as const,
      ),
    ]);
    for (const entry of before.entries) {
      const file = expected.get(entry.file);
      const size = statSync(this.path(entry.file), { throwIfNoEntry: false })?.size;
      const fits = file?.sizeBytes === entry.sizeBytes && file.count === entry.crc32.length;
      if (fits && size === entry.sizeBytes) this.done.set(entry.file, entry.crc32);
    }
    return Journal.open(this.folder, this.head, before.soundBytes);
  }

  private refuseForeignFiles(): void {
    const ours = (name: string): boolean => name === JOURNAL_NAME || name.startsWith(LOCK_NAME);
    const foreign = readdirSync(this.folder).find((name) => !ours(name));
    if (foreign === undefined) return;
    throw new MoestreamError('PACK_REFUSED', `${this.folder} is not empty: it holds ${foreign}`, {
      hint: 'Give a new folder: packing overwrites nothing that it did not write.',
    });
  }

  private refuseFullDisk(): void {
    let neededBytes = SPARE_BYTES;
    const missing = [this.plan.dense, ...this.plan.layers].filter(({ file }) => !this.done.has(file));
    for (const { file, sizeBytes } of missing) {
      // What an unfinished file takes now is given back when it is written anew.
      const found = statSync(this.path(file), { throwIfNoEntry: false });
      neededBytes += sizeBytes - Math.min(sizeBytes, (found?.blocks ?? 0) * 512);
    }
    const { bavail, bsize } = statfsSync(this.folder);
    const freeBytes = bavail * bsize;
    if (freeBytes >= neededBytes) return;
    const missingBytes = formatBytes(neededBytes - freeBytes);
    throw new MoestreamError(
      'DISK_FULL',
      `${this.folder}: packing needs ${formatBytes(neededBytes)}, its disk has ${formatBytes(freeBytes)} free`,
      { hint: `Make room for ${missingBytes} more, or pack to another disk.` },
    );
  }

  private async packFiles(journal: Journal): Promise<void> {
    const { dense, texts, layers } = this.plan;
    for (const text of texts) {
      await this.packFile(
        journal,
        text.name,
        text.sizeBytes,
        (writer) => this.writeText(text, writer),
        (reader) =>
          fileCrc(reader, text.sizeBytes, (bytes) => this.work.advance(bytes / 2)).then((crc) => [crc]),
      );
    }
    await this.packFile(
      journal,
      dense.file,
      dense.sizeBytes,
      (writer) => this.writeDense(writer),
      (reader) =>
        fileCrc(reader, dense.sizeBytes, (bytes) => this.work.advance(bytes / 2)).then((crc) => [crc]),
    );
    for (const layer of layers) {
      await this.packFile(
        journal,
        layer.file,
        layer.sizeBytes,
        (writer) => this.writeLayer(layer, writer),
        (reader) => this.readBackLayer(layer, reader),
      );
    }
  }

  /** One file from nothing to its line in the journal. Every byte counts half when written and half when verified. */
  private async packFile(
    journal: Journal,
    file: string,
    sizeBytes: number,
    write: (writer: FileWriter) => Promise<number[]>,
    readBack: (reader: PieceReader) => Promise<number[]>,
  ): Promise<void> {
    if (this.done.has(file)) {
      this.work.advance(sizeBytes);
      return;
    }
    const path = this.path(file);
    const isLayer = this.plan.layers.some((layer) => layer.file === file);
    const writer = await FileWriter.create(path, isLayer);
    let written: number[];
    try {
      written = await write(writer);
      await writer.sync();
    } finally {
      await writer.close();
    }
    await syncFolder(this.folder);
    const reader = new PieceReader(path);
    try {
      if (!reader.direct && !this.noticed) {
        this.noticed = true;
        this.options.onNotice?.('verifying through the page cache: direct I/O is refused here');
      }
      const read = await readBack(reader);
      const bad = written.findIndex((crc, index) => crc !== read[index]);
      if (bad >= 0) {
        const where = isLayer ? `, expert ${bad}` : '';
        throw new MoestreamError(
          'VERIFY_FAILED',
          `${path}${where}: reads back otherwise than it was written`,
          {
            hint: 'The disk does not keep what is written to it: check it, or pack to another one.',
          },
        );
      }
    } finally {
      reader.close();
    }
    journal.append({ file, sizeBytes, crc32: written });
    this.done.set(file, written);
    this.writtenBytes += sizeBytes;
    this.options.onFile?.(file, sizeBytes);
  }

  private async writeText({ path, sizeBytes }: TextFile, writer: FileWriter): Promise<number[]> {
    const bytes = readFileSync(path);
    if (bytes.length !== sizeBytes)
      throw new MoestreamError('PACK_REFUSED', `${path}: was changed while it was being packed`);
    await writer.write(bytes, 0);
    this.work.advance(sizeBytes / 2);
    return [crc32(bytes)];
  }

  /** Header, tensors and the padding between them; one checksum over the whole file. */
  private async writeDense(writer: FileWriter): Promise<number[]> {
    const { header, copies, sizeBytes } = this.plan.dense;
    const sources = this.sources;
    function* pieces(): Generator<Piece & { readonly to: number }> {
      for (const { tensor, offsetBytes } of copies) {
        for (const piece of piecesOf(sources[tensor.file]!, tensor.offsetBytes, tensor.byteLength)) {
          yield { ...piece, to: offsetBytes + piece.offsetBytes - tensor.offsetBytes };
        }
      }
    }
    let crc = 0;
    let atBytes = 0;
    const append = async (bytes: Uint8Array): Promise<void> => {
      await writer.write(bytes, atBytes);
      crc = crc32(bytes, crc);
      atBytes += bytes.length;
      this.work.advance(bytes.length / 2);
    };
    const padTo = (endBytes: number): Promise<void> => append(new Uint8Array(endBytes - atBytes));
    await append(header);
    for await (const { piece, bytes, error } of readAhead(pieces())) {
      if (bytes === undefined) throw error;
      if (piece.to > atBytes) await padTo(piece.to);
      await append(bytes);
    }
    if (sizeBytes > atBytes) await padTo(sizeBytes);
    return [crc];
  }

  /** The experts of a layer, some at a time; a checksum each. */
  private async writeLayer(layer: LayerPlan, writer: FileWriter): Promise<number[]> {
    const crcs = new Array<number>(this.model.hyperparameters.experts).fill(0);
    // Zeroed, and nothing is ever written behind the expert: the padding is there already.
    const wholes = Array.from({ length: IN_FLIGHT }, () => allocateShared(layer.strideBytes));
    const spans = PACKED_MATRICES.flatMap((part) => partsOf<StridedPlace>(layer.tensors[part]));
    const buffers = Array.from({ length: IN_FLIGHT }, () => spans.map((span) => readBuffer(span.byteLength)));
    await inLanes(crcs.length, async (expert, lane) => {
      const views = await settledAll(
        spans.map((span, index) => this.readSpan(span, expert, buffers[lane]![index]!)),
      );
      const whole = wholes[lane]!;
      let at = 0;
      for (const view of views) {
        whole.set(view, at);
        at += view.length;
      }
      crcs[expert] = crc32(whole.subarray(0, at));
      await writer.write(whole, expert * layer.strideBytes);
      this.work.advance(layer.strideBytes / 2);
    });
    return crcs;
  }

  private readSpan(span: StridedPlace, expert: number, into: Uint8Array): Promise<Uint8Array> {
    const offsetBytes = span.offsetBytes + expert * span.strideBytes;
    return this.sources[span.file]!.read(offsetBytes, span.byteLength, into);
  }

  private async readBackLayer(layer: LayerPlan, reader: PieceReader): Promise<number[]> {
    const crcs = await expertCrcs(reader, { ...layer, experts: this.model.hyperparameters.experts }, () =>
      this.work.advance(layer.strideBytes / 2),
    );
    return crcs.map((crc) => {
      if (typeof crc === 'number') return crc;
      throw crc;
    });
  }

  private async writeManifest(): Promise<void> {
    const matrix = (of: ExpertMatrix): Record<string, unknown> => ({
      type: of.type.name,
      rows: of.rows,
      cols: of.cols,
      byteLength: bytesOf(of),
    });
    const { dense, texts, layers, isCheckpoint } = this.plan;
    const whole = (file: string, sizeBytes: number): Record<string, unknown> => ({
      file,
      sizeBytes,
      crc32: hexOfCrc(this.done.get(file)![0]!),
    });
    const manifest = {
      format: PACKED_FORMAT,
      version: isCheckpoint ? PACKED_CHECKPOINT_VERSION : PACKED_VERSION,
      source: {
        fingerprint: this.head.fingerprint,
        files: this.head.files.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      },
      dense: whole(dense.file, dense.sizeBytes),
      ...(isCheckpoint ? { texts: texts.map(({ name, sizeBytes }) => whole(name, sizeBytes)) } : {}),
      layers: layers.map(({ file, strideBytes, tensors }) => ({
        file,
        experts: this.model.hyperparameters.experts,
        strideBytes,
        gate: matrix(tensors.gate),
        up: matrix(tensors.up),
        down: matrix(tensors.down),
        crc32: this.done.get(file)!.map(hexOfCrc),
      })),
    };
    const path = this.path(MANIFEST_NAME);
    const writer = await FileWriter.create(`${path}.part`, false);
    try {
      await writer.write(Buffer.from(`${JSON.stringify(manifest, undefined, 1)}\n`), 0);
      await writer.sync();
    } finally {
      await writer.close();
    }
    try {
      renameSync(`${path}.part`, path);
    } catch (cause) {
      rmSync(`${path}.part`, { force: true });
      throw writeError(path, cause);
    }
    await syncFolder(this.folder);
  }
}

/** Waits for all, also when one has failed: their buffers are in use until then. */
async function settledAll<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  const settled = await Promise.allSettled(promises);
  return settled.map((result) => {
    if (result.status === 'rejected') throw result.reason;
    return result.value;
  });
}

function stampsOf(model: Model): JournalHead['files'] {
  return model.files.map(({ path }) => {
    try {
      const { size, mtimeMs } = statSync(path);
      return { name: basename(path), sizeBytes: size, modifiedMillis: mtimeMs };
    } catch (cause) {
      throw new MoestreamError('READ_FAILED', `${codeOf(cause)} looking at ${path}`, { cause });
    }
  });
}

function sameStamps(some: JournalHead['files'], others: JournalHead['files']): boolean {
  return (
    some.length === others.length &&
    some.every((one, index) => {
      const other = others[index]!;
      return one.sizeBytes === other.sizeBytes && one.modifiedMillis === other.modifiedMillis;
    })
  );
}
