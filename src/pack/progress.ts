/** What packing and verifying tell while they run. */
import { MoestreamError } from '../errors.ts';

export interface WorkOptions {
  readonly signal?: AbortSignal;
  /** After every few megabytes. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** After every finished file. */
  readonly onFile?: (name: string, sizeBytes: number) => void;
  readonly onNotice?: (sentence: string) => void;
}

export class Work {
  doneBytes = 0;
  readonly totalBytes: number;
  private readonly options: WorkOptions;

  constructor(totalBytes: number, options: WorkOptions) {
    this.totalBytes = totalBytes;
    this.options = options;
  }

  /** Counts bytes; throws ABORTED when the caller wants to end. */
  advance(byteCount: number): void {
    this.doneBytes += byteCount;
    this.options.onProgress?.(Math.min(this.doneBytes, this.totalBytes), this.totalBytes);
    if (this.options.signal?.aborted === true) {
      throw new MoestreamError('ABORTED', 'interrupted', { cause: this.options.signal.reason });
    }
  }
}
