/**
 * The errors of moestream.
 *
 * Every failure that a user or an embedding program can meet is a MoestreamError with a stable `code`, a message that
 * names the offending value, and, where there is one, a hint that says what to do. Codes are part of the public API:
 * they are added to, never renamed. The command line maps them to exit codes; nothing else about a failure is parsed.
 */

export const ERROR_CODES = [
  /** A caller passed a value that no model could make valid. */
  'USAGE',
  /** The model file or folder is not there, or cannot be opened. */
  'MODEL_NOT_FOUND',
  /** The model file is damaged, hostile or not of a supported kind. */
  'MODEL_INVALID',
  /** The file is well formed, but this build has no implementation for what it asks. */
  'MODEL_UNSUPPORTED',
  /** The memory budget cannot hold what the model needs at least. */
  'PLAN_REFUSED',
  /** The prompt (or prompt plus answer) does not fit the context. */
  'CONTEXT_FULL',
  /** The operating system failed a read. */
  'READ_FAILED',
  /** A file ended before the bytes that its header promised. */
  'READ_SHORT',
  /** A read did not finish within its bound. */
  'READ_TIMEOUT',
  /** Bytes on disk are not what their checksum says. */
  'VERIFY_FAILED',
  /** The operating system failed a write. */
  'WRITE_FAILED',
  /** The disk has no room for what is to be written. */
  'DISK_FULL',
  /** The folder cannot take this pack: it holds something else, or another process is at work in it. */
  'PACK_REFUSED',
  /** A download failed in a way that trying again, a bounded number of times, did not mend. */
  'DOWNLOAD_FAILED',
  /** The server refuses: the repository is private or gated, or the token is wrong. */
  'DOWNLOAD_REFUSED',
  /** Another process is at work on the same model. */
  'MODEL_BUSY',
  /** A research plan is not what the schema asks for. */
  'PLAN_INVALID',
  /** A log of measurements is damaged, of another plan, or another process writes it. */
  'LOG_REFUSED',
  /** A measured run ended without a result. */
  'RUN_FAILED',
  /** A saved sequence is damaged, of another model, or longer than the context. */
  'STATE_REFUSED',
  /** A file of reference probabilities is damaged, or of another vocabulary. */
  'BASELINE_REFUSED',
  /** A file given as a routing trace is damaged, hostile or something else. */
  'TRACE_INVALID',
  /** A worker thread died or stopped answering. */
  'WORKER_FAILED',
  /** The caller's AbortSignal fired. */
  'ABORTED',
  /** The engine is closed, or busy with another generation. */
  'ENGINE_STATE',
  /** There is no GPU that this can use here, or its kernels do not compile. */
  'GPU_UNAVAILABLE',
  /** The GPU broke off its work. */
  'GPU_FAILED',
  /** The system ended the GPU's work because it took too long. */
  'GPU_TIMEOUT',
  /** The GPU was removed, or may not be used any more. */
  'GPU_LOST',
  /** The native add-ons are missing or do not load. */
  'NATIVE_MISSING',
  /** A rule that must always hold does not: a bug in moestream. */
  'INTERNAL',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

/** `Symbol.for` so that errors are recognised across worker threads and across two copies of the package. */
const BRAND = Symbol.for('moestream.error');

export interface ErrorDetails {
  /** What the user can do about it, one sentence. */
  readonly hint?: string;
  readonly cause?: unknown;
}

export class MoestreamError extends Error {
  override readonly name = 'MoestreamError';
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly [BRAND] = true;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.hint = details.hint;
  }

  static is(value: unknown): value is MoestreamError {
    return typeof value === 'object' && value !== null && BRAND in value;
  }
}

/** What survives structured cloning between threads; `fromWire` builds the error again on the other side. */
export interface WireError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string | undefined;
}

export function toWire(error: unknown): WireError {
  if (MoestreamError.is(error)) return { code: error.code, message: error.message, hint: error.hint };
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return {
    code: 'INTERNAL',
    message,
    hint: 'This is a bug in moestream: please report it with this message.',
  };
}

export function fromWire(wire: WireError): MoestreamError {
  return new MoestreamError(wire.code, wire.message, wire.hint === undefined ? {} : { hint: wire.hint });
}

/** Throws INTERNAL when a rule that must always hold does not. */
export function invariant(condition: boolean, rule: string): asserts condition {
  if (!condition) throw new MoestreamError('INTERNAL', `broken invariant: ${rule}`);
}
