/**
 * Whether the Metal backend computes here what the CPU backend does: every kernel, on random data.
 *
 * Products are compared one type at a time, in the three ways that they are dispatched; everything else by small random
 * models that take every part of a layer through prefill and decode. It is what `--backend auto` asks before it trusts a
 * GPU, for the model's own types, and what `moestream doctor` shows in full.
 */
import { ggmlType, rowBytes, SUPPORTED_TYPE_IDS } from '../model/ggml-types.ts';
import {
  type BackendAddon,
  type BackendConfig,
  backendError,
  type CpuAddon,
  type MetalAddon,
} from '../native.ts';
import { fillRandom, randomSource, signed } from './random-blocks.ts';
import { ARCHITECTURES, type RandomModelOptions, randomModel, runModel } from './random-model.ts';

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
const KV_TYPES: readonly BackendConfig['kvType'][] = ['f32', 'f16', 'q8_0'];
/** One row, a few rows, and a tile and a part of one. */
const INPUT_ROWS = [1, 3, 37] as const;
const PRODUCT_COLS = 512;
/** No multiple of the rows that a threadgroup computes. */
const PRODUCT_ROWS = 44;

/** Prefill in two chunks, of which one is longer than DeltaNet's, then decode. */
const STEPS = [21, 3, 1, 1] as const;
const SMALL = { type: F32, kvType: 'f32', width: 64, contextLength: 64 } as const;
/** Long enough for attention in several splits. */
const LONG = { ...SMALL, architecture: 'plain', contextLength: 1100 } as const;
const LONG_STEPS = [...new Array<number>(45).fill(24), 1] as const;

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
    const error = backendError(cause);
    return { name, error: undefined, failure: error instanceof Error ? error.message : String(error) };
  }
}

function compareProducts(cpu: CpuAddon, metal: MetalAddon, type: number): number {
  const random = randomSource(type + 1);
  const weights = new Uint8Array(PRODUCT_ROWS * rowBytes(ggmlType(type), PRODUCT_COLS));
  fillRandom(cpu, type, random, 1, weights);
  let worst = 0;
  for (const rows of INPUT_ROWS) {
    const input = Float32Array.from({ length: rows * PRODUCT_COLS }, () => signed(random));
    const found = new Float32Array(rows * PRODUCT_ROWS);
    const expected = new Float32Array(found.length);
    metal.multiply(type, weights, PRODUCT_COLS, PRODUCT_ROWS, input, rows, found);
    cpu.multiply(type, 'exact', '', weights, PRODUCT_COLS, PRODUCT_ROWS, input, rows, expected);
    const error = relativeRms(found, expected);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

function compareModels(
  cpu: CpuAddon,
  metal: BackendAddon,
  options: RandomModelOptions,
  steps: readonly number[] = STEPS,
): number {
  const model = randomModel(cpu, options);
  const expected = runModel(cpu, model, steps);
  const found = runModel(metal, model, steps);
  const differs = expected.routes.findIndex((expert, at) => found.routes[at] !== expert);
  if (differs >= 0)
    throw new Error(`the router chose expert ${found.routes[differs]}, not ${expected.routes[differs]}`);
  return relativeRms(found.logits, expected.logits);
}

/** The checks one after the other, for these ggml types and types of keys and values. */
export function* metalChecks(
  cpu: CpuAddon,
  metal: MetalAddon,
  types: readonly number[],
  kvTypes: readonly BackendConfig['kvType'][],
): Generator<Check> {
  for (const type of types) {
    const { name } = ggmlType(type);
    yield check(`products of ${name}`, () => compareProducts(cpu, metal, type));
    const options = { ...SMALL, architecture: 'hybrid', type, width: 256 } as const;
    yield check(`a model of ${name}`, () => compareModels(cpu, metal, options));
  }
  for (const architecture of ARCHITECTURES)
    yield check(`layers, ${architecture}`, () => compareModels(cpu, metal, { ...SMALL, architecture }));
  for (const kvType of kvTypes)
    yield check(`keys and values as ${kvType}`, () =>
      compareModels(cpu, metal, { ...SMALL, architecture: 'plain', kvType }),
    );
  yield check('attention over 1081 tokens', () => compareModels(cpu, metal, LONG, LONG_STEPS));
}

/** Everything that the kernels can do. */
export const allMetalChecks = (cpu: CpuAddon, metal: MetalAddon): Generator<Check> =>
  metalChecks(cpu, metal, SUPPORTED_TYPE_IDS, KV_TYPES);
