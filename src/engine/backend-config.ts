/** What the backend is told of a model: hyperparameters from the file, limits from the settings. */
import { MoestreamError } from '../errors.ts';
import type { Hyperparameters } from '../model/hyperparameters.ts';
import type { BackendConfig } from '../native.ts';
import type { EngineSettings } from './options.ts';

/** Enough for a page of text; more costs memory that the expert cache could use. */
const CONTEXT_DEFAULT = 4096;

export function backendConfig(model: Hyperparameters, settings: EngineSettings): BackendConfig {
  const contextLength = settings.contextLength ?? Math.min(CONTEXT_DEFAULT, model.contextLength);
  if (contextLength > model.contextLength) {
    throw new MoestreamError(
      'USAGE',
      `a context of ${contextLength} is more than the model's ${model.contextLength}`,
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
    maxRows: Math.min(settings.chunk, contextLength),
    maxSequences: 1,
    contextLength,
    threads: settings.threads,
    precision: settings.precision,
  };
}
