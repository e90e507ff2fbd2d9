/** What the backend is told of a model: hyperparameters from the file, limits from the settings. */
import { MoestreamError } from '../errors.ts';
import type { Hyperparameters } from '../model/hyperparameters.ts';
import type { BackendConfig } from '../native.ts';
import type { EngineSettings } from './options.ts';

/** Enough for a page of text; more costs memory that the expert cache could use. */
export const CONTEXT_DEFAULT = 4096;

/** Values that share a scale in q8_0. */
const Q8_0_VALUES = 32;

/** `chunk` is the number of prompt tokens that are computed together. */
export function backendConfig(
  model: Hyperparameters,
  settings: EngineSettings,
  chunk: number,
): BackendConfig {
  const contextLength = settings.contextLength ?? Math.min(CONTEXT_DEFAULT, model.contextLength);
  if (contextLength > model.contextLength) {
    throw new MoestreamError(
      'USAGE',
      `a context of ${contextLength} is more than the model's ${model.contextLength}`,
    );
  }
  const attends = model.attentionLayers.includes(1);
  if (settings.kvType === 'q8_0' && attends && model.headDim % Q8_0_VALUES !== 0) {
    throw new MoestreamError(
      'MODEL_UNSUPPORTED',
      `heads of ${model.headDim} values cannot be kept as q8_0, which takes multiples of ${Q8_0_VALUES}`,
      { hint: 'Use kvType f16 (--kv-type f16).' },
    );
  }
  return {
    layers: model.layers,
    hidden: model.hidden,
    vocabulary: model.vocabulary,
    rmsEpsilon: model.rmsEpsilon,
    attentionLayers: model.attentionLayers,
    heads: model.heads,
    kvHeads: model.kvHeads,
    headDim: model.headDim,
    rotaryDims: model.rotaryDims,
    ropeTheta: model.ropeTheta,
    gatedAttention: model.gatedAttention,
    deltaKeyHeads: model.deltaKeyHeads,
    deltaValueHeads: model.deltaValueHeads,
    deltaHeadDim: model.deltaHeadDim,
    convKernel: model.convKernel,
    tiledValueHeads: model.tiledValueHeads,
    experts: model.experts,
    expertsPerToken: model.expertsPerToken,
    expertWidth: model.expertWidth,
    sharedWidth: model.sharedWidth,
    maxRows: Math.min(chunk, contextLength),
    maxSequences: 1,
    contextLength,
    threads: settings.threads,
    spins: settings.spins,
    precision: settings.precision,
    kvType: settings.kvType,
  };
}
