/**
 * From a model and settings to a plan: what the backend is told, where the dense weights go, what the budget is spent on.
 * Allocates nothing.
 *
 * It also chooses the chunk, the prompt tokens that are computed together. A large one reads each expert once for more
 * tokens: on a model four times its budget 512 made 60 tok/s of prompt where 64 made 15 (60 GB read instead of 11), and in
 * memory 124 instead of 92. What it costs is scratch memory, so it may take an eighth of the budget: the experts that have no
 * room then are far fewer than those that 256 would read twice.
 */
import { MoestreamError } from '../errors.ts';
import type { Model } from '../model/model.ts';
import { type BackendConfig, type BackendFootprint, backendError, loadBackend } from '../native.ts';
import { LOGITS_SLOTS } from '../pipeline/messages.ts';
import { type MemoryPlan, planMemory } from '../pipeline/plan.ts';
import { planResidents, type ResidentPlan } from '../pipeline/residents.ts';
import { backendConfig } from './backend-config.ts';
import type { EngineSettings } from './options.ts';

export interface PlannedModel {
  readonly plan: MemoryPlan;
  readonly config: BackendConfig;
  readonly residents: ResidentPlan;
}

/** Tried in this order. */
const LARGE_CHUNKS = [512, 256, 128] as const;
/** Works with any budget that works at all. */
const SMALL_CHUNK = 64;
const SCRATCH_SHARE_MAX = 1 / 8;

/** The plan of a model under these settings. Throws PLAN_REFUSED with the smallest budget that works. */
export function planOf(model: Model, settings: EngineSettings): PlannedModel {
  if (settings.chunk !== undefined) return planWith(model, settings, settings.chunk);
  for (const chunk of LARGE_CHUNKS) {
    const planned = tryPlan(model, settings, chunk);
    if (planned !== undefined && planned.plan.scratchBytes <= SCRATCH_SHARE_MAX * settings.budgetBytes)
      return planned;
  }
  return planWith(model, settings, SMALL_CHUNK);
}

/** Undefined when the budget does not hold a chunk of this size. */
function tryPlan(model: Model, settings: EngineSettings, chunk: number): PlannedModel | undefined {
  try {
    return planWith(model, settings, chunk);
  } catch (error) {
    if (MoestreamError.is(error) && error.code === 'PLAN_REFUSED') return undefined;
    throw error;
  }
}

function planWith(model: Model, settings: EngineSettings, chunk: number): PlannedModel {
  const config = backendConfig(model.hyperparameters, settings, chunk);
  const residents = planResidents(
    model.tensors.dense,
    model.files.map((file) => file.sizeBytes),
  );
  const plan = planMemory({
    budgetBytes: settings.budgetBytes,
    contextLength: config.contextLength,
    experts: config.experts,
    expertsPerToken: config.expertsPerToken,
    layers: model.tensors.experts,
    denseBytes: residents.totalBytes,
    footprint: footprintOf(config, settings),
    logitsBytes: LOGITS_SLOTS * config.vocabulary * 4,
  });
  return { plan, config, residents };
}

/** A choice that nobody has made yet counts as the CPU. */
function footprintOf(config: BackendConfig, settings: EngineSettings): BackendFootprint {
  try {
    return loadBackend(settings.backend === 'metal' ? 'metal' : 'cpu').footprint(config);
  } catch (cause) {
    throw backendError(cause);
  }
}
