/**
 * What computes: the CPU, or Metal.
 *
 * Nobody has to trust a GPU that computes wrongly: `auto` takes Metal on macOS when its self-test agrees with the CPU for
 * the types of this model, and says what it took and why. A wish is followed without a test, and fails when it cannot be.
 */
import { MoestreamError } from '../errors.ts';
import type { GgmlType } from '../model/ggml-types.ts';
import type { Model } from '../model/model.ts';
import { type BackendName, loadCpu, loadMetal, type MetalAddon } from '../native.ts';
import { metalChecks } from '../selftest/metal-checks.ts';
import type { EngineSettings } from './options.ts';
import { planOf } from './planning.ts';

export function chooseBackend(model: Model, settings: EngineSettings): BackendName {
  if (settings.backend === 'cpu') return 'cpu';
  if (settings.backend === 'metal') {
    const metal = loadMetal();
    refuseUnreadable(metal, model);
    if (metal.emulator !== undefined)
      settings.notice('computing on an emulated GPU, which is slow and for tests');
    return 'metal';
  }
  if (process.platform !== 'darwin') return 'cpu';
  const reason = reasonAgainstMetal(model, settings);
  settings.notice(reason === undefined ? 'computing on the GPU' : `computing on the CPU: ${reason}`);
  return reason === undefined ? 'metal' : 'cpu';
}

/** Throws MODEL_UNSUPPORTED naming the first matrix that no kernel reads, for its type or the place where it begins. */
function refuseUnreadable(metal: MetalAddon, model: Model): void {
  for (const { tensor, type, places } of matricesOf(model)) {
    const refuse = (reason: string): never => {
      throw new MoestreamError('MODEL_UNSUPPORTED', `${reason}: ${tensor}`, { hint: 'Use --backend cpu.' });
    };
    if (!metal.supportsType(type.id)) refuse(`the Metal backend has no kernels for ${type.name}`);
    // Bytes lie in the pages of memory as they lie in those of the file.
    const alignment = metal.alignmentOf(type.id);
    const odd = places.find((byte) => byte % alignment !== 0);
    if (odd !== undefined)
      refuse(
        `the Metal kernels read ${type.name} from multiples of ${alignment} bytes, not from byte ${odd}`,
      );
  }
}

interface PlacedMatrix {
  readonly tensor: string;
  readonly type: GgmlType;
  /** Where it begins; of the experts' the first two: the rest follows from them. */
  readonly places: readonly number[];
}

/** What the GPU reads as it lies in the files: all but the small tensors that are widened when a model is opened. */
function* matricesOf(model: Model): Generator<PlacedMatrix> {
  for (const { name, layer, type, rows, offsetBytes } of model.tensors.dense) {
    if (rows === 1 || name === 'ssm_conv1d.weight') continue;
    yield { tensor: layer < 0 ? name : `blk.${layer}.${name}`, type, places: [offsetBytes] };
  }
  for (const [layer, experts] of model.tensors.experts.entries()) {
    for (const [which, { type, offsetBytes, strideBytes }] of Object.entries(experts)) {
      const places = [offsetBytes, offsetBytes + strideBytes];
      yield { tensor: `blk.${layer}.ffn_${which}_exps.weight`, type, places };
    }
  }
}

/** The types that a model's matrices have. */
export function typesOf(model: Model): number[] {
  const types = new Set(model.tensors.dense.map((tensor) => tensor.type.id));
  for (const { gate, up, down } of model.tensors.experts)
    for (const matrix of [gate, up, down]) types.add(matrix.type.id);
  return [...types].sort((a, b) => a - b);
}

/** Undefined when Metal is there and agrees with the CPU. */
function reasonAgainstMetal(model: Model, settings: EngineSettings): string | undefined {
  try {
    // Refuses shapes that the kernels do not take.
    planOf(model, { ...settings, backend: 'metal' });
    const metal = loadMetal();
    refuseUnreadable(metal, model);
    return firstFailure(metal, typesOf(model), settings.kvType);
  } catch (error) {
    if (!MoestreamError.is(error)) throw error;
    return error.message;
  }
}

export function firstFailure(
  metal: MetalAddon,
  types: readonly number[],
  kvType: EngineSettings['kvType'],
): string | undefined {
  for (const { name, failure } of metalChecks(loadCpu(), metal, types, [kvType])) {
    if (failure !== undefined) return `the GPU fails its self-test, ${name}: ${failure}`;
  }
  return undefined;
}
