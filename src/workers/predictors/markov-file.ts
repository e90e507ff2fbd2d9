/**
 * What the predictor markov has learned, as a file: docs/format.md. The file may come from anywhere: its length, shape,
 * model and checksum are compared before a byte of it is used. It is written beside its place and renamed.
 */
import { closeSync, fstatSync, fsyncSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import { MoestreamError } from '../../errors.ts';
import { emptyTables, type MarkovTables, type PairTable } from './markov.ts';
import type { PredictorShape } from './predictor.ts';

const MAGIC = 'MOEMARKV';
const VERSION = 1;
/** Magic, version, layers, experts, experts per token, CRC-32 of the tables, 4 zero bytes, fingerprint of the model. */
export const MARKOV_HEADER_BYTES = 64;
const FINGERPRINT_AT = 32;
export const FINGERPRINT_BYTES = 32;

function bytesOf(array: Uint8Array | Uint32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function partsOf({ acrossLayers, acrossTokens }: MarkovTables): Uint8Array[] {
  const of = ({ pairs, uses }: PairTable): Uint8Array[] => [bytesOf(pairs), bytesOf(uses)];
  return [...of(acrossLayers), ...of(acrossTokens)];
}

const checksum = (parts: readonly Uint8Array[]): number => parts.reduce((sum, part) => crc32(part, sum), 0);

function readFully(fd: number, into: Uint8Array, atBytes: number): void {
  for (let done = 0; done < into.length; ) {
    const count = readSync(fd, into, done, into.length - done, atBytes + done);
    if (count === 0) throw new Error('it ends early');
    done += count;
  }
}

/** Undefined when there is no such file. Throws STATE_REFUSED for one that does not fit. */
export function readMarkov(
  path: string,
  shape: PredictorShape,
  fingerprint: Uint8Array,
): MarkovTables | undefined {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new MoestreamError('STATE_REFUSED', `${path} cannot be read: ${reasonOf(cause)}`, { cause });
  }
  try {
    return readOpened(fd, shape, fingerprint);
  } catch (cause) {
    throw new MoestreamError('STATE_REFUSED', `${path} is no state of this predictor: ${reasonOf(cause)}`, {
      hint: 'Name another file, or remove this one to begin anew.',
      cause,
    });
  } finally {
    closeSync(fd);
  }
}

function readOpened(fd: number, shape: PredictorShape, fingerprint: Uint8Array): MarkovTables {
  const tables = emptyTables(shape);
  const parts = partsOf(tables);
  const wantedBytes = parts.reduce((sum, part) => sum + part.length, MARKOV_HEADER_BYTES);
  const { size } = fstatSync(fd);
  const header = Buffer.alloc(MARKOV_HEADER_BYTES);
  if (size < MARKOV_HEADER_BYTES) throw new Error(`it has ${size} bytes`);
  readFully(fd, header, 0);
  if (header.toString('latin1', 0, MAGIC.length) !== MAGIC) throw new Error('it begins with other bytes');
  const version = header.readUInt32LE(8);
  if (version !== VERSION) throw new Error(`it is of version ${version}`);
  const found = [12, 16, 20].map((at) => header.readUInt32LE(at));
  const wanted = [shape.layers, shape.experts, shape.expertsPerToken];
  if (found.some((value, index) => value !== wanted[index]))
    throw new Error(
      `it is of ${found.join(', ')} layers, experts and experts per token, not ${wanted.join(', ')}`,
    );
  if (!header.subarray(FINGERPRINT_AT, FINGERPRINT_AT + FINGERPRINT_BYTES).equals(fingerprint))
    throw new Error('it is of another model');
  if (size !== wantedBytes) throw new Error(`it has ${size} bytes instead of ${wantedBytes}`);
  let at = MARKOV_HEADER_BYTES;
  for (const part of parts) {
    readFully(fd, part, at);
    at += part.length;
  }
  if (checksum(parts) !== header.readUInt32LE(24)) throw new Error('its checksum is wrong');
  return tables;
}

/** Throws WRITE_FAILED or DISK_FULL; the file of before stays then. */
export function writeMarkov(
  path: string,
  shape: PredictorShape,
  fingerprint: Uint8Array,
  tables: MarkovTables,
): void {
  const parts = partsOf(tables);
  const header = Buffer.alloc(MARKOV_HEADER_BYTES);
  header.write(MAGIC, 'latin1');
  [VERSION, shape.layers, shape.experts, shape.expertsPerToken, checksum(parts)].forEach((value, index) => {
    header.writeUInt32LE(value, 8 + 4 * index);
  });
  header.set(fingerprint, FINGERPRINT_AT);
  const partial = `${path}.${process.pid}.part`;
  try {
    const fd = openSync(partial, 'w');
    try {
      for (const part of [header, ...parts])
        for (let done = 0; done < part.length; ) done += writeSync(fd, part, done);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(partial, path);
  } catch (cause) {
    rmSync(partial, { force: true });
    const full = (cause as NodeJS.ErrnoException).code === 'ENOSPC';
    throw new MoestreamError(
      full ? 'DISK_FULL' : 'WRITE_FAILED',
      `${path} is not written: ${reasonOf(cause)}`,
      {
        cause,
      },
    );
  }
}

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause));
