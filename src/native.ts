/**
 * The native add-ons as TypeScript sees them, and their loader.
 *
 * This file is the contract between the languages. Native code takes typed-array views, never a SharedArrayBuffer
 * itself (Node 20 cannot pass one), keeps a reference to every view it is given, and is called with numbers only on the
 * token path. Values are validated on this side; native code asserts. Byte counts and offsets are JavaScript numbers:
 * exact up to 2^53, far beyond any file.
 */
import { createRequire } from 'node:module';
import { ERROR_CODES, type ErrorCode, MoestreamError } from './errors.ts';

/** native/io: opening model files and reading them into the slab. Every function may be called from any thread. */
export interface IoAddon {
  /** Opens a file for reading. `direct` asks for O_DIRECT (Linux) or F_NOCACHE (macOS) and fails where it is refused. */
  open(path: string, direct: boolean): { fd: number; sizeBytes: number };
  close(fd: number): void;
  /**
   * Reads `byteLength` bytes at `fileOffset` into `into` at `intoOffset`. Interrupted and short reads are continued.
   * Returns the bytes read: fewer than asked only at the end of the file. A failed read returns `-errno`.
   */
  readAt(fd: number, fileOffset: number, byteLength: number, into: Uint8Array, intoOffset: number): number;
  /** The alignment that direct reads of this file need, in bytes, or 0 when the system does not say. */
  directAlignment(fd: number): number;
  /**
   * Of `samples` pages, chosen at random all over a file that is open for buffered reads, how many are in the page cache,
   * or -1 where the system does not tell.
   */
  cachedPages(fd: number, sizeBytes: number, samples: number, seed: number): number;
  /** Asks for huge pages and touches every page, so that no read meets untouched memory. */
  prefault(view: Uint8Array): void;
  /** Bytes of the memory that lie in huge pages, or -1 where the system does not tell. Slow: reads the whole memory map. */
  hugePageBytes(view: Uint8Array): number;
  /** The size of the huge pages that this system gives to ordinary memory, or 0 where it has none. */
  hugePageSize(): number;
  /** How many bytes after its first address the view crosses a multiple of `boundaryBytes` in memory. */
  bytesToBoundary(view: Uint8Array, boundaryBytes: number): number;
  /** Keeps memory from being swapped out; throws with `errno` where the system's limit forbids it. */
  lock(view: Uint8Array): void;
  /** Gives page-aligned memory back to the system before its owner is collected; its content is lost. False where it stays. */
  release(view: Uint8Array): boolean;
  /** Bytes of the file in the system's page cache, or -1 where it does not say. */
  cachedBytes(fd: number, sizeBytes: number): number;
  /** Asks the system to forget the file's pages. False where there is no way to ask. */
  dropCached(fd: number): boolean;
  /** The system's page size. */
  pageBytes(): number;
  /** The name of an errno value, such as `EIO`. */
  errnoName(errno: number): string;
  /** 0 when this process may use io_uring, otherwise the errno that says why not. */
  uringRefusal(): number;
  /**
   * Asks for the calling thread to run as soon as it is woken, also while others compute on every core. False where the system
   * has no way to ask (Linux before 6.12, macOS) or refuses.
   */
  preferPromptWakeup(): boolean;
  /** A descriptor that ends a `UringReader`'s wait early when it is signalled, from any thread. */
  createWakeFd(): number;
  signalWakeFd(fd: number): void;
  /** A ring for `depth` reads at once, used by the thread that makes it. */
  readonly UringReader: new (
    depth: number,
    fds: readonly number[],
    segments: readonly Uint8Array[],
    wakeFd: number,
  ) => UringReader;
}

/** native/io: reads through io_uring. */
export interface UringReader {
  /** Whether the kernel refused to keep our memory registered; RLIMIT_MEMLOCK may forbid it. */
  readonly registeringRefused: boolean;
  /** Queues a read; it starts with the next `wait`. Never more than `depth` may be under way. */
  queueRead(
    id: number,
    file: number,
    fileOffset: number,
    segment: number,
    segmentOffset: number,
    byteLength: number,
  ): void;
  /**
   * Starts what is queued and sleeps until a read has ended, the wake descriptor is signalled or the time is over. Writes
   * pairs (id, bytes read or -errno) and returns their number.
   */
  wait(timeoutMillis: number, completions: Int32Array): number;
  close(): void;
}

/** The numbers that shape a model's arithmetic; every count is validated where it is read from a file. */
export interface ModelShape {
  readonly layers: number;
  readonly hidden: number;
  readonly vocabulary: number;
  readonly rmsEpsilon: number;
  /** One entry per layer: 1 full attention, 0 Gated DeltaNet. */
  readonly attentionLayers: Uint8Array;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotaryDims: number;
  readonly ropeTheta: number;
  /** Whether attn_q carries an output gate beside each query head (qwen35moe, qwen3next). */
  readonly gatedAttention: boolean;
  /** DeltaNet: 0 in every field when the model has no such layer. */
  readonly deltaKeyHeads: number;
  readonly deltaValueHeads: number;
  readonly deltaHeadDim: number;
  readonly convKernel: number;
  /** Key head of value head h: h % keyHeads when tiled (qwen35moe GGUF), floor(h / (valueHeads / keyHeads)) when grouped. */
  readonly tiledValueHeads: boolean;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly expertWidth: number;
  /** Width of the shared expert, 0 when the model has none (qwen3moe). */
  readonly sharedWidth: number;
}

/** What the backend is told: the model's shape, and the caller's limits and choices. */
export interface BackendConfig extends ModelShape {
  /** Rows (tokens) that one step may hold at most. */
  readonly maxRows: number;
  /** Sequences that are alive at most, each with its own KV cache and DeltaNet state. */
  readonly maxSequences: number;
  /** Positions that one sequence may hold at most. */
  readonly contextLength: number;
  readonly threads: number;
  /** How often a compute thread looks for work before it sleeps. Default 50, about 2 microseconds. */
  readonly spins?: number;
  /** How matrices are multiplied: float32 activations, or activations rounded to 8 bits as the formats' families do. */
  readonly precision: 'exact' | 'fast';
  /**
   * How keys and values are kept: float32, half floats, or blocks of 32 numbers of 8 bits, for which headDim is a multiple
   * of 32. Scores and sums are float32 with every type.
   */
  readonly kvType: 'f32' | 'f16' | 'q8_0';
}

export interface BackendFootprint {
  readonly kvBytes: number;
  readonly stateBytes: number;
  readonly scratchBytes: number;
}

/** Words of one row in the bound row table. */
export const ROW_WORDS = 4;
export const ROW_TOKEN = 0;
export const ROW_POSITION = 1;
export const ROW_SEQUENCE = 2;

/**
 * native/cpu and native/metal: one model. Driven in steps of one layer for a batch of rows; a row is one token of one
 * sequence. Rows of one sequence stand together in rising position. Used from one thread.
 *
 *     begin(rows); for each layer { mix; shared; expert for every selected expert, in any order; combine }; logits
 *
 * A GPU works behind its calls: only `mix`, `logits` and `finish` wait for it. The bytes given to `expert` must stay as
 * they are until one of these three has returned, or `abandon`.
 */
export interface Backend {
  /**
   * Hands over one dense tensor: `name` is its GGUF name without `blk.N.` and with its suffix (`attn_q.weight`,
   * `ssm_a`, `token_embd.weight`), `layer` is -1 for tensors outside the layers. `cols` is the contiguous dimension.
   * One-dimensional tensors have rows = 1. `type` is the type's id (ggml-types.ts, affine-types.ts); affine types come with
   * their scales and biases, and `bytes` are then the codes. Memory stays the caller's and must stay alive.
   */
  setTensor(
    name: string,
    layer: number,
    type: number,
    cols: number,
    rows: number,
    bytes: Uint8Array,
    scales?: Uint8Array,
    biases?: Uint8Array,
  ): void;
  /** The types of the routed experts' matrices in one layer. */
  setExpertTypes(layer: number, gateType: number, upType: number, downType: number): void;
  /** Checks that every tensor the architecture needs is there in its right shape. Throws an Error naming what is not. */
  seal(): void;
  /** (maxRows, ROW_WORDS) int32, written by the caller before `begin`. */
  bindRows(rows: Int32Array): void;
  /** (maxRows, expertsPerToken): `mix` writes the selected experts in descending probability, and their weights. */
  bindRoutes(ids: Int32Array, weights: Float32Array): void;
  /** The slab's segments; `expert` names one by its index. */
  bindSlab(segments: readonly Uint8Array[]): void;
  /** (slots, vocabulary) float32. */
  bindLogits(logits: Float32Array): void;
  /** Empties the KV cache and the DeltaNet state of a sequence. */
  resetSequence(sequence: number): void;
  /** `to` forgets what it held and goes on as `from` would. Throws when the last step of `from` did not end. */
  copySequence(from: number, to: number): void;
  /** The length of a saved sequence that holds so many positions. */
  sequenceBytes(positions: number): number;
  /**
   * Writes a sequence, to be restored by a backend of the same model, precision and kvType, and returns the bytes written. Throws
   * when its last step did not end or `into` is too short.
   */
  saveSequence(sequence: number, into: Uint8Array): number;
  /**
   * Makes a sequence what was saved; `from` is exactly the bytes of the state. Use `restoreSequence` below: what cannot be
   * restored is refused with an Error whose `code` is STATE_REFUSED, before anything is changed.
   */
  restoreSequence(sequence: number, from: Uint8Array): void;
  begin(rowCount: number): void;
  /** Norm, attention or DeltaNet, residual, norm, router: fills the bound routes for every row. */
  mix(layer: number): void;
  /**
   * Copies the residual stream of a row, as the router saw it, before its norm, to `firstFloat` of `into`: hidden floats, for
   * predictors. Between `mix` and `combine`. The CPU adds what the experts computed since will add to it; a backend that
   * works behind its calls does not wait for them.
   */
  copyStream(row: number, into: Float32Array, firstFloat: number): void;
  /** The shared expert; needs no routed expert, so it runs while they are read. No effect when the model has none. */
  shared(layer: number): void;
  /**
   * One expert for all the rows that selected it. Byte offsets are relative to the segment's first byte. Those of scales and
   * biases come all or none, and must come when a matrix of this layer is of an affine type; the others' do not count.
   */
  expert(
    layer: number,
    expert: number,
    segment: number,
    gateByte: number,
    upByte: number,
    downByte: number,
    gateScalesByte?: number,
    gateBiasesByte?: number,
    upScalesByte?: number,
    upBiasesByte?: number,
    downScalesByte?: number,
    downBiasesByte?: number,
  ): void;
  /** Starts what has been asked for so far: call it before sleeping. No effect on the CPU, whose calls do their work. */
  flush(): void;
  /** Returns when no expert given so far is read any more: its slots may be given away. */
  finish(): void;
  /** Weighted sum in router order, shared expert's gate, residual. */
  combine(layer: number): void;
  /** Final norm and LM head for `rowCount` rows from `firstRow` into the bound logits from slot `firstSlot`. */
  logits(firstRow: number, rowCount: number, firstSlot: number): void;
  /** Gives up the step under way, if there is one; its sequences are to be reset. Nothing reads the slab afterwards. */
  abandon(): void;
  /** What went to the GPU since the backend was made. */
  counts?(): SubmissionCounts;
  /** Ends the backend's threads and frees its memory; any later call throws. */
  close(): void;
}

/** native/cpu: the routers of all layers, asked about a residual stream of an earlier layer. Used from one thread. */
export interface RouterProbe {
  /** `router` is (rows, hidden), of affine types its codes, and stays the caller's. */
  setLayer(
    layer: number,
    normType: number,
    norm: Uint8Array,
    routerType: number,
    rows: number,
    router: Uint8Array,
    scales?: Uint8Array,
    biases?: Uint8Array,
  ): void;
  /** The `wanted` experts with the largest scores for the stream at `firstFloat`, largest first, to `firstId` of `ids`. */
  probe(
    layer: number,
    streams: Float32Array,
    firstFloat: number,
    ids: Int32Array,
    firstId: number,
    wanted: number,
  ): void;
}

export interface SubmissionCounts {
  readonly commandBuffers: number;
  readonly dispatches: number;
  /** How often the CPU waited for the GPU. */
  readonly waits: number;
}

export interface BackendAddon {
  readonly Backend: new (config: BackendConfig) => Backend;
  /** What a backend of this configuration will allocate, without allocating it. Throws for what it cannot run. */
  footprint(config: BackendConfig): BackendFootprint;
  /** Whether the backend multiplies matrices of this type. */
  supportsType(type: number): boolean;
}

export interface CpuAddon extends BackendAddon {
  readonly RouterProbe: new (
    layers: number,
    hidden: number,
    experts: number,
    rmsEpsilon: number,
  ) => RouterProbe;
  /**
   * Dequantises whole blocks of a type into float32: the reference that tests hold against golden vectors. Of an affine type
   * all codes stand first, then all scales, then all biases.
   */
  dequantize(type: number, blocks: Uint8Array, out: Float32Array): void;
  /**
   * Quantises finite float32 values, whole blocks of them, to Q8_0, Q4_0, Q4_K, IQ4_NL or an affine type, whose blocks are
   * laid out as `dequantize` takes them. Throws for other types and values.
   */
  quantize(type: number, values: Float32Array, blocks: Uint8Array): void;
  /** The sets of instructions that this processor has kernels for, the one that is used first. */
  instructionSets(): string[];
}

export interface MetalDevice {
  readonly name: string;
  readonly unifiedMemory: boolean;
  readonly maxBufferBytes: number;
  /** What the system lets the GPU use at once without moving things about. */
  readonly workingSetBytes: number;
  /** Whether the dense weights can be kept resident between command buffers. */
  readonly residencySets: boolean;
}

export interface KernelCheck {
  readonly kernel: string;
  readonly shape: string;
  /** How far a result may be from the CPU's, as a part of the largest one. */
  readonly tolerance: number;
}

export interface KernelChecks {
  list(): KernelCheck[];
  /** Runs the check of this index; infinite when a result is no number. */
  run(index: number): number;
}

export interface MetalAddon extends BackendAddon {
  /** Throws GPU_UNAVAILABLE where there is none. */
  device(): MetalDevice;
  /** The kernels read matrices of this type from multiples of so many bytes. */
  alignmentOf(type: number): number;
  /** Every kernel against the CPU's code on random data. Making one compiles the kernels. */
  readonly KernelChecks: new () => KernelChecks;
  /** Controls of the emulated GPU, where the add-on was built on it. */
  readonly emulator?: unknown;
}

export const BACKENDS = ['cpu', 'metal'] as const;
export type BackendName = (typeof BACKENDS)[number];

const HINTS: Partial<Record<ErrorCode, string>> = {
  GPU_UNAVAILABLE: 'Use --backend cpu; `moestream doctor` says more.',
  GPU_FAILED: 'Use --backend cpu, or a smaller --memory; `moestream doctor` checks the GPU.',
  GPU_TIMEOUT: 'Use a smaller --chunk, or --backend cpu.',
  GPU_LOST: 'Start again, or use --backend cpu.',
  MODEL_UNSUPPORTED: 'Use --backend cpu.',
  PLAN_REFUSED: 'Use a smaller --context, or --backend cpu.',
};

/** What a backend threw, as a MoestreamError where it carries a code of ours. */
export function backendError(cause: unknown): unknown {
  if (!(cause instanceof Error) || MoestreamError.is(cause) || !('code' in cause)) return cause;
  const code = ERROR_CODES.find((each) => each === cause.code);
  if (code === undefined) return cause;
  const hint = HINTS[code];
  return new MoestreamError(code, cause.message, { cause, ...(hint === undefined ? {} : { hint }) });
}

/** Restores a saved sequence. Throws STATE_REFUSED for bytes that are damaged, of another model or too long. */
export function restoreSequence(backend: Backend, sequence: number, from: Uint8Array): void {
  try {
    backend.restoreSequence(sequence, from);
  } catch (cause) {
    throw backendError(cause);
  }
}

const require = createRequire(import.meta.url);

function load(name: 'io' | 'cpu'): unknown {
  const path = `../build/Release/${name}.node`;
  try {
    return require(path);
  } catch (cause) {
    throw new MoestreamError('NATIVE_MISSING', `the native add-on ${name}.node does not load`, {
      hint: 'Run `npm run build` in the moestream folder; it needs a C++20 compiler and CMake.',
      cause,
    });
  }
}

export const loadIo = (): IoAddon => load('io') as IoAddon;
export const loadCpu = (): CpuAddon => load('cpu') as CpuAddon;

/** The Metal add-on: Apple's on macOS, on Linux the one on the emulator, where that was built. */
export function loadMetal(): MetalAddon {
  const mac = process.platform === 'darwin';
  try {
    return require(`../build/${mac ? '' : 'emulator/'}Release/metal.node`) as MetalAddon;
  } catch (cause) {
    throw new MoestreamError(
      'GPU_UNAVAILABLE',
      mac ? 'the native add-on metal.node does not load' : 'Metal is only on macOS',
      {
        hint: mac
          ? 'Run `npm run build` in the moestream folder.'
          : 'To run the Metal backend on an emulated GPU: `npm run build:emulator`, which needs clang 19.',
        cause,
      },
    );
  }
}

export const loadBackend = (name: BackendName): BackendAddon => (name === 'metal' ? loadMetal() : loadCpu());
