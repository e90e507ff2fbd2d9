/**
 * What computes: the CPU, or Metal.
 *
 * Nobody has to trust a GPU that computes wrongly: `auto` takes Metal on macOS when its self-test agrees with the CPU for
 * the types of this model, and says what it took and why. A wish is followed without a test, and fails when it cannot be.
 */
import { MoestreamError } from '../errors.ts';
import type { Model } from '../model/model.ts';
import { type BackendName, loadCpu, loadMetal, type MetalAddon } from '../native.ts';
import { metalChecks } from '../selftest/metal-checks.ts';
import type { EngineSettings } from './options.ts';
import { planOf } from './planning.ts';

export function chooseBackend(model: Model, settings: EngineSettings): BackendName {
  if (settings.backend === 'cpu') return 'cpu';
  if (settings.backend === 'metal') {
    const metal = loadMetal();
    refuseOtherTypes(metal, model);
    if (metal.emulator !== undefined)
      settings.notice('computing on an emulated GPU, which is slow and for tests');
    return 'metal';
  }
  if (process.platform !== 'darwin') return 'cpu';
  const reason = reasonAgainstMetal(model, settings);
  settings.notice(reason === undefined ? 'computing on the GPU' : `computing on the CPU: ${reason}`);
  return reason === undefined ? 'metal' : 'cpu';
}

function refuseOtherTypes(metal: MetalAddon, model: Model): void {
  const types = [
    ...model.tensors.dense,
    ...model.tensors.experts.flatMap(({ gate, up, down }) => [gate, up, down]),
  ];
  const other = types.find(({ type }) => !metal.supportsType(type.id));
  if (other === undefined) return;
  throw new MoestreamError('MODEL_UNSUPPORTED', `the Metal backend has no kernels for ${other.type.name}`, {
    hint: 'Use --backend cpu.',
  });
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
    refuseOtherTypes(metal, model);
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
