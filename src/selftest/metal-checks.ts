/**
 * Whether the Metal backend computes here what the CPU backend does, on random data: every kernel alone, then small random
 * models that take every part of a layer through prefill and decode. It is what `--backend auto` asks before it trusts a
 * GPU, for the model's own types, and what `moestream doctor` shows in full.
 */
import { AFFINE_TYPE_IDS, tensorType } from '../model/affine-types.ts';
import { SUPPORTED_TYPE_IDS } from '../model/ggml-types.ts';
import {
  type BackendAddon,
  type BackendConfig,
  backendError,
  type CpuAddon,
  type KernelCheck,
  type KernelChecks,
  type MetalAddon,
} from '../native.ts';
import { ARCHITECTURES, type RandomModelOptions, randomModel, runModel, stateAfter } from './random-model.ts';

export interface Check {
  readonly name: string;
  /** Relative root mean square of the difference; undefined when it did not come so far. */
  readonly error: number | undefined;
  /** Why it failed. */
  readonly failure: string | undefined;
}

/** Sums run in another order than the CPU's: 1e-6 is usual. A wrong kernel is off by more than 1e-2. */
const TOLERANCE = 1e-4;
const F32 = 0;
const ALL_TYPE_IDS = [...SUPPORTED_TYPE_IDS, ...AFFINE_TYPE_IDS];
const KV_TYPES: readonly BackendConfig['kvType'][] = ['f32', 'f16', 'q8_0'];
/** Prefill in two chunks, of which one is longer than DeltaNet's, then decode. */
const STEPS = [21, 3, 1, 1] as const;
const SMALL = { type: F32, kvType: 'f32', width: 64, contextLength: 64 } as const;
/** A product of many rows and one of one, in every matrix of a model. */
const TYPE_STEPS = [5, 1] as const;
/** Attention in several splits: the CPU computes the beginning, Metal goes on from its saved sequence. */
const LONG_BEGINNING = 1078;
const LONG_STEPS = [2, 1] as const;
const LONG = { ...SMALL, architecture: 'plain', contextLength: LONG_BEGINNING + 3 } as const;

export function relativeRms(found: Float32Array, expected: Float32Array): number {
  let difference = 0;
  let size = 0;
  for (let at = 0; at < expected.length; at++) {
    difference += (found[at]! - expected[at]!) ** 2;
    size += expected[at]! ** 2;
  }
  return Math.sqrt(difference / size);
}

function check(name: string, compare: () => number): Check {
  try {
    const error = compare();
    // Not a number is a failure too.
    const passed = error < TOLERANCE;
    return { name, error, failure: passed ? undefined : `differs by ${error.toExponential(1)}` };
  } catch (cause) {
    return { name, error: undefined, failure: messageOf(cause) };
  }
}

function messageOf(cause: unknown): string {
  const error = backendError(cause);
  return error instanceof Error ? error.message : String(error);
}

function compareModels(
  cpu: CpuAddon,
  metal: BackendAddon,
  options: RandomModelOptions,
  steps: readonly number[] = STEPS,
  beginning = 0,
): number {
  const model = randomModel(cpu, options);
  const before = beginning === 0 ? undefined : stateAfter(cpu, model, beginning);
  const expected = runModel(cpu, model, steps, before);
  const found = runModel(metal, model, steps, before);
  const differs = expected.routes.findIndex((expert, at) => found.routes[at] !== expert);
  if (differs >= 0)
    throw new Error(`the router chose expert ${found.routes[differs]}, not ${expected.routes[differs]}`);
  return relativeRms(found.logits, expected.logits);
}

/** One line for all the kernels of a name, `matvec_q8_0` of `matvec_q8_0 (3 x 40)`. */
function* kernelChecks(metal: MetalAddon, types: readonly number[]): Generator<Check> {
  const wanted = new Set(types.map(suffixOf));
  const unwanted = new Set(ALL_TYPE_IDS.map(suffixOf).filter((suffix) => !wanted.has(suffix)));
  let checks: KernelChecks;
  try {
    checks = new metal.KernelChecks();
  } catch (cause) {
    yield check('kernels', () => {
      throw cause;
    });
    return;
  }
  const indices = new Map<string, number[]>();
  checks.list().forEach(({ kernel }, index) => {
    const family = /^(?:matvec|gated|matmul|tensor_matmul|embed|router_scores)(_.+)$/.exec(kernel);
    if (family !== null && unwanted.has(family[1]!)) return;
    indices.set(kernel, [...(indices.get(kernel) ?? []), index]);
  });
  const list = checks.list();
  for (const [kernel, which] of indices) yield kernelCheck(kernel, which, list, checks);
}

/** A type at the end of a kernel's name; the affine types of one width share theirs. */
function suffixOf(id: number): string {
  const { name, affine } = tensorType(id);
  return affine === undefined ? `_${name.toLowerCase()}` : `_affine${affine.bits}`;
}

function kernelCheck(
  kernel: string,
  which: readonly number[],
  list: readonly KernelCheck[],
  checks: KernelChecks,
): Check {
  let worst = 0;
  try {
    for (const index of which) {
      const { shape, tolerance } = list[index]!;
      const error = checks.run(index);
      worst = Math.max(worst, error);
      if (!(error <= tolerance))
        return { name: kernel, error, failure: `too far from the CPU's result: ${shape}` };
    }
    return { name: kernel, error: worst, failure: undefined };
  } catch (cause) {
    return { name: kernel, error: undefined, failure: messageOf(cause) };
  }
}

/** The checks one after the other, for these types of tensors and types of keys and values. */
export function* metalChecks(
  cpu: CpuAddon,
  metal: MetalAddon,
  types: readonly number[],
  kvTypes: readonly BackendConfig['kvType'][],
): Generator<Check> {
  yield* kernelChecks(metal, types);
  for (const type of types) {
    const { name } = tensorType(type);
    const options = { ...SMALL, architecture: 'plain', type, width: 256 } as const;
    yield check(`a model of ${name}`, () => compareModels(cpu, metal, options, TYPE_STEPS));
  }
  for (const architecture of ARCHITECTURES)
    yield check(`layers, ${architecture}`, () => compareModels(cpu, metal, { ...SMALL, architecture }));
  for (const kvType of kvTypes)
    yield check(`keys and values as ${kvType}`, () =>
      compareModels(cpu, metal, { ...SMALL, architecture: 'plain', kvType }),
    );
  yield check(`attention over ${LONG.contextLength} tokens`, () =>
    compareModels(cpu, metal, LONG, LONG_STEPS, LONG_BEGINNING),
  );
}

/** Everything that the kernels can do. */
export const allMetalChecks = (cpu: CpuAddon, metal: MetalAddon): Generator<Check> =>
  metalChecks(cpu, metal, ALL_TYPE_IDS, KV_TYPES);
