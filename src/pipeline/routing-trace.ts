/**
 * The file of a routing trace, as docs/format.md has it: a header, one record per row and layer in the order of
 * computation, a trailer that says how it ended. All numbers little-endian.
 *
 * Such a file may come from anywhere: every number of the header has bounds, and an expert or layer beyond them is refused
 * with its place.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { MoestreamError } from '../errors.ts';

const MAGIC = 'MOEROUTE';
const END_MAGIC = 'MOEREND.';
const VERSION = 1;
const HEADER_BYTES = 64;
const IDENTITY_AT = 32;
export const IDENTITY_BYTES = 32;
const TRAILER_BYTES = 24;
/** position u32, layer u16, rows left u16 */
const RECORD_HEAD_BYTES = 8;
const LAYERS_MAX = 1024;
const EXPERTS_MAX = 65536;
const EXPERTS_PER_TOKEN_MAX = 256;
const POSITION_MAX = 2 ** 24;
const ROWS_MAX = 4096;
/** Of a file that is loaded: 700,000 tokens of 60 layers with 10 experts. */
const FILE_BYTES_MAX = 2 * 1024 ** 3;
const BLOCK_BYTES = 1024 ** 2;
const WEIGHT_UNIT = 65535;

export interface TraceHeader {
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly promptTokens: number;
  /** Of the model: equal for the same one. */
  readonly identity: Uint8Array;
  /** (layers): bytes of one expert. */
  readonly expertBytes: readonly number[];
}

/** How a recording ended. `cut`: nobody was left to say, as after a kill. */
export const TRACE_ENDINGS = ['complete', 'interrupted', 'cut'] as const;
export type TraceEnding = (typeof TRACE_ENDINGS)[number];

export const recordBytes = (expertsPerToken: number): number => RECORD_HEAD_BYTES + 4 * expertsPerToken;

export function encodeHeader(header: TraceHeader): Buffer {
  const { layers, experts, expertsPerToken, promptTokens } = header;
  const bytes = Buffer.alloc(HEADER_BYTES + 8 * layers);
  bytes.write(MAGIC, 'latin1');
  [VERSION, layers, experts, expertsPerToken, promptTokens].forEach((value, index) => {
    bytes.writeUInt32LE(value, 8 + 4 * index);
  });
  bytes.set(header.identity, IDENTITY_AT);
  header.expertBytes.forEach((value, layer) => {
    bytes.writeBigUInt64LE(BigInt(value), HEADER_BYTES + 8 * layer);
  });
  return bytes;
}

export function encodeTrailer(records: number, ending: Exclude<TraceEnding, 'cut'>): Buffer {
  const bytes = Buffer.alloc(TRAILER_BYTES);
  bytes.write(END_MAGIC, 'latin1');
  bytes.writeBigUInt64LE(BigInt(records), 8);
  bytes.writeUInt32LE(TRACE_ENDINGS.indexOf(ending), 16);
  return bytes;
}

/** Writes one record at `at`; ids and weights are `count` values from `firstId` and `firstWeight`. */
export function encodeRecord(
  into: DataView,
  at: number,
  head: { position: number; layer: number; rowsLeft: number },
  ids: Int32Array,
  firstId: number,
  weights: Float32Array,
  firstWeight: number,
  count: number,
): void {
  into.setUint32(at, head.position, true);
  into.setUint16(at + 4, head.layer, true);
  into.setUint16(at + 6, head.rowsLeft, true);
  for (let index = 0; index < count; index++) {
    const weight = Math.round(Math.min(1, Math.max(0, weights[firstWeight + index]!)) * WEIGHT_UNIT);
    into.setUint16(at + RECORD_HEAD_BYTES + 2 * index, ids[firstId + index]!, true);
    into.setUint16(at + RECORD_HEAD_BYTES + 2 * (count + index), weight, true);
  }
}

/** A loaded trace. A step is one layer for the rows that were computed together. */
export interface RoutingTrace {
  readonly header: TraceHeader;
  readonly ending: TraceEnding;
  readonly records: number;
  /** (steps): layer, rows, and where its ids begin; one more entry says where the last one ends. */
  readonly stepLayer: Uint16Array;
  readonly stepRows: Uint16Array;
  readonly stepFirst: Float64Array;
  readonly steps: number;
  /** (records, top-k) */
  readonly ids: Uint16Array;
}

/** Loads a trace. Throws USAGE when it cannot be read, TRACE_INVALID when it is none or damaged. */
export function readRoutingTrace(path: string): RoutingTrace {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('USAGE', `${path} cannot be read: ${reason}`, { cause });
  }
  try {
    return new TraceReader(path, fd).read();
  } finally {
    closeSync(fd);
  }
}

class TraceReader {
  private readonly path: string;
  private readonly fd: number;
  private readonly sizeBytes: number;

  constructor(path: string, fd: number) {
    this.path = path;
    this.fd = fd;
    const stat = fstatSync(fd);
    this.sizeBytes = stat.size;
    if (!stat.isFile()) throw this.invalid('it is no regular file');
    if (this.sizeBytes > FILE_BYTES_MAX)
      throw this.invalid(`it has ${this.sizeBytes} bytes, at most 2 GiB are read`);
  }

  read(): RoutingTrace {
    const header = this.readHeader();
    const headBytes = HEADER_BYTES + 8 * header.layers;
    const each = recordBytes(header.expertsPerToken);
    const trailer = this.readTrailer(headBytes, each);
    const bodyBytes = this.sizeBytes - headBytes - (trailer === undefined ? 0 : TRAILER_BYTES);
    const records = Math.floor(bodyBytes / each);
    if (trailer !== undefined && (trailer.records !== records || bodyBytes % each !== 0)) {
      throw this.invalid(`its trailer counts ${trailer.records} records, it has ${bodyBytes / each}`);
    }
    return { ...this.readRecords(header, headBytes, records), ending: trailer?.ending ?? 'cut' };
  }

  private readHeader(): TraceHeader {
    const fixed = this.bytes(0, HEADER_BYTES);
    if (fixed.toString('latin1', 0, MAGIC.length) !== MAGIC) throw this.invalid('it begins with other bytes');
    const number = (name: string, at: number, most: number, least = 1): number => {
      const value = fixed.readUInt32LE(at);
      if (value >= least && value <= most) return value;
      throw this.invalid(`${name} is ${value}, expected ${least} to ${most}`);
    };
    const version = fixed.readUInt32LE(8);
    if (version !== VERSION) throw this.invalid(`it is of version ${version}, this build reads ${VERSION}`);
    const layers = number('layers', 12, LAYERS_MAX);
    const experts = number('experts', 16, EXPERTS_MAX);
    const expertsPerToken = number('experts per token', 20, Math.min(experts, EXPERTS_PER_TOKEN_MAX));
    const promptTokens = number('prompt tokens', 24, POSITION_MAX, 0);
    const sizes = this.bytes(HEADER_BYTES, 8 * layers);
    const expertBytes = Array.from({ length: layers }, (_, layer) =>
      Number(sizes.readBigUInt64LE(8 * layer)),
    );
    const wrong = expertBytes.findIndex((bytes) => bytes < 1 || bytes > 2 ** 32);
    if (wrong >= 0) throw this.invalid(`an expert of layer ${wrong} has ${expertBytes[wrong]} bytes`);
    const identity = new Uint8Array(fixed.subarray(IDENTITY_AT, IDENTITY_AT + IDENTITY_BYTES));
    return { layers, experts, expertsPerToken, promptTokens, identity, expertBytes };
  }

  /** Undefined when the file ends with a record, or within one. */
  private readTrailer(headBytes: number, each: number): { records: number; ending: TraceEnding } | undefined {
    if (this.sizeBytes < headBytes + TRAILER_BYTES) return undefined;
    const bytes = this.bytes(this.sizeBytes - TRAILER_BYTES, TRAILER_BYTES);
    if (bytes.toString('latin1', 0, END_MAGIC.length) !== END_MAGIC) return undefined;
    const ending = TRACE_ENDINGS[bytes.readUInt32LE(16)];
    if (ending === undefined || ending === 'cut' || each < 1) throw this.invalid('its trailer is damaged');
    return { records: Number(bytes.readBigUInt64LE(8)), ending };
  }

  private readRecords(header: TraceHeader, headBytes: number, records: number): Omit<RoutingTrace, 'ending'> {
    const { layers, experts, expertsPerToken } = header;
    const each = recordBytes(expertsPerToken);
    const ids = new Uint16Array(records * expertsPerToken);
    const stepLayer = new Uint16Array(records);
    const stepRows = new Uint16Array(records);
    const stepFirst = new Float64Array(records + 1);
    let steps = 0;
    let rowsLeft = 0;
    const perBlock = Math.max(1, Math.floor(BLOCK_BYTES / each));
    for (let record = 0; record < records; ) {
      const count = Math.min(perBlock, records - record);
      const block = this.bytes(headBytes + record * each, count * each);
      for (let index = 0; index < count; index++, record++) {
        const at = index * each;
        const layer = block.readUInt16LE(at + 4);
        const left = block.readUInt16LE(at + 6);
        if (rowsLeft === 0) {
          if (layer >= layers || left >= ROWS_MAX)
            throw this.wrongRecord(record, `layer ${layer}, ${left} rows behind`);
          stepLayer[steps] = layer;
          stepRows[steps] = left + 1;
          stepFirst[steps++] = record * expertsPerToken;
          rowsLeft = left + 1;
        } else if (layer !== stepLayer[steps - 1] || left !== rowsLeft - 1) {
          throw this.wrongRecord(record, `layer ${layer} with ${left} rows behind it`);
        }
        rowsLeft--;
        for (let k = 0; k < expertsPerToken; k++) {
          const expert = block.readUInt16LE(at + RECORD_HEAD_BYTES + 2 * k);
          if (expert >= experts) throw this.wrongRecord(record, `expert ${expert} of ${experts}`);
          ids[record * expertsPerToken + k] = expert;
        }
      }
    }
    // A step that was cut short is left out: its rows would be taken for a smaller batch.
    if (rowsLeft > 0) steps--;
    stepFirst[steps] = rowsLeft > 0 ? stepFirst[steps]! : records * expertsPerToken;
    return { header, records, stepLayer, stepRows, stepFirst, steps, ids };
  }

  private bytes(offsetBytes: number, byteLength: number): Buffer {
    if (offsetBytes + byteLength > this.sizeBytes) throw this.invalid(`it ends at byte ${this.sizeBytes}`);
    const into = Buffer.alloc(byteLength);
    for (let done = 0; done < byteLength; ) {
      const count = readSync(this.fd, into, done, byteLength - done, offsetBytes + done);
      if (count === 0) throw this.invalid(`it ends at byte ${offsetBytes + done}`);
      done += count;
    }
    return into;
  }

  private wrongRecord(record: number, what: string): MoestreamError {
    return this.invalid(`record ${record} has ${what}`);
  }

  private invalid(problem: string): MoestreamError {
    return new MoestreamError('TRACE_INVALID', `${this.path} is no routing trace: ${problem}`, {
      hint: 'Record one with `moestream generate --trace-routing FILE`.',
    });
  }
}
