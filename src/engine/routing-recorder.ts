/**
 * Records a routing trace: takes it off its ring beside the generation, on the main thread, and writes it in blocks.
 *
 * Memory is a ring and a buffer, whatever the length. The file has another name (FILE.part) until it has its trailer, which
 * says whether the generation ended by itself or was interrupted; when it cannot be written it is removed, and the
 * generation ends with that error, because a trace with holes would be worse than none.
 */
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { MoestreamError } from '../errors.ts';
import {
  TRACE_IDS,
  TRACE_LAYER,
  TRACE_POSITION,
  TRACE_ROWS_LEFT,
  TRACE_SLOTS,
  traceWords,
} from '../pipeline/messages.ts';
import { EMPTY, SpscRing } from '../pipeline/ring.ts';
import {
  encodeHeader,
  encodeRecord,
  encodeTrailer,
  recordBytes,
  type TraceHeader,
} from '../pipeline/routing-trace.ts';

const BUFFER_BYTES = 256 * 1024;
const LOOK_MILLIS = 100;

export class RoutingRecorder {
  readonly ring: SpscRing;
  private readonly path: string;
  private readonly partial: string;
  private readonly file: FileHandle;
  private readonly expertsPerToken: number;
  private readonly floats: Float32Array;
  private readonly buffer = Buffer.alloc(BUFFER_BYTES);
  private readonly view = new DataView(this.buffer.buffer, this.buffer.byteOffset, BUFFER_BYTES);
  private filledBytes = 0;
  private records = 0;
  private ended = false;
  private failure: MoestreamError | undefined;

  /** Throws WRITE_FAILED or DISK_FULL. */
  static async create(path: string, header: TraceHeader): Promise<RoutingRecorder> {
    const partial = `${path}.part`;
    try {
      const recorder = new RoutingRecorder(path, partial, await open(partial, 'w'), header.expertsPerToken);
      const bytes = encodeHeader(header);
      bytes.copy(recorder.buffer);
      recorder.filledBytes = bytes.length;
      return recorder;
    } catch (cause) {
      throw writeError(path, cause);
    }
  }

  private constructor(path: string, partial: string, file: FileHandle, expertsPerToken: number) {
    this.path = path;
    this.partial = partial;
    this.file = file;
    this.expertsPerToken = expertsPerToken;
    this.ring = SpscRing.create(TRACE_SLOTS, traceWords(expertsPerToken));
    this.floats = new Float32Array(this.ring.words.buffer);
  }

  /** Takes records until `finish` is called and the ring is empty. Rejects when the file cannot be written. */
  async record(): Promise<void> {
    try {
      for (;;) {
        const ended = this.ended;
        for (let slot = this.ring.tryPeek(); slot !== EMPTY; slot = this.ring.tryPeek()) {
          if (this.filledBytes + recordBytes(this.expertsPerToken) > BUFFER_BYTES) await this.flush();
          this.take(slot);
          this.ring.release();
        }
        if (ended) return;
        await this.ring.peekAsync(LOOK_MILLIS);
      }
    } catch (cause) {
      this.failure = writeError(this.path, cause);
      throw this.failure;
    }
  }

  /** Nothing more comes: call when the stages are at rest. */
  finish(): void {
    this.ended = true;
    this.ring.interrupt();
  }

  /** After `record` has ended: closes the file, under its own name when all of it is there. Throws what `create` throws. */
  async close(ending: 'complete' | 'interrupted'): Promise<void> {
    try {
      if (this.failure === undefined) {
        await this.flush();
        await this.file.appendFile(encodeTrailer(this.records, ending));
      }
      await this.file.close();
      if (this.failure === undefined) await rename(this.partial, this.path);
    } catch (cause) {
      this.failure ??= writeError(this.path, cause);
      await this.file.close().catch(() => {
        // It is the first error that is told.
      });
    }
    if (this.failure === undefined) return;
    await rm(this.partial, { force: true });
    throw this.failure;
  }

  private take(slot: number): void {
    const { words } = this.ring;
    const { expertsPerToken } = this;
    const head = {
      position: words[slot + TRACE_POSITION]!,
      layer: words[slot + TRACE_LAYER]!,
      rowsLeft: words[slot + TRACE_ROWS_LEFT]!,
    };
    const firstId = slot + TRACE_IDS;
    const firstWeight = firstId + expertsPerToken;
    encodeRecord(
      this.view,
      this.filledBytes,
      head,
      words,
      firstId,
      this.floats,
      firstWeight,
      expertsPerToken,
    );
    this.filledBytes += recordBytes(expertsPerToken);
    this.records++;
  }

  private async flush(): Promise<void> {
    await this.file.appendFile(this.buffer.subarray(0, this.filledBytes));
    this.filledBytes = 0;
  }
}

function writeError(path: string, cause: unknown): MoestreamError {
  if (MoestreamError.is(cause)) return cause;
  const { code } = cause as NodeJS.ErrnoException;
  const reason = cause instanceof Error ? cause.message : String(cause);
  const full = code === 'ENOSPC' || code === 'EDQUOT';
  return new MoestreamError(
    full ? 'DISK_FULL' : 'WRITE_FAILED',
    `the routing trace ${path} is not written: ${reason}`,
    {
      hint: full
        ? 'Free some room, or record it on another disk.'
        : 'Name a file in a folder that can be written to.',
      cause,
    },
  );
}
