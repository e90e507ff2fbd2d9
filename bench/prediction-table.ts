/**
 * Hit rates of every predictor and eviction policy, from what the routers of a real model chose: the table of
 * docs/prediction.md. No times are in it, so it is the same on every machine.
 *
 * Answers to questions are sampled with fixed seeds (precision exact), then every conversation goes through the backend
 * once more, row by row, as decoding does; what the routers chose and the residual streams that they saw are kept, and
 * replayed through the real slab, policies and predictors. Run: npm run table:prediction [-- MODEL]
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { identityOf } from '#dist/engine/forecaster.js';
import { open } from '#dist/index.js';
import { type Model, openModel } from '#dist/model/model.js';
import {
  type Backend,
  type BackendConfig,
  loadCpu,
  ROW_POSITION,
  ROW_TOKEN,
  ROW_WORDS,
} from '#dist/native.js';
import { POLICIES } from '#dist/pipeline/eviction.js';
import type { RoutingTrace } from '#dist/pipeline/routing-trace.js';
import { belady } from '#dist/simulate/belady.js';
import { type ReplayPrediction, type ReplayResult, replay } from '#dist/simulate/replay.js';
import { shapeFor } from '#dist/simulate/shape.js';
import { Panel } from '#dist/workers/predictors/panel.js';
import type { PredictorName } from '#dist/workers/predictors/predictor.js';

const { positionals } = parseArgs({ allowPositionals: true });
const path = positionals[0] ?? 'models/tldr-UD_Q3_K_XL.gguf';

const COMMANDS =
  'tar git ssh find grep sed awk curl docker ls cp mv rm chmod ps kill top df du mount rsync ffmpeg make gcc npm pip cargo ' +
  'systemctl journalctl ip ping nmap openssl gpg zip unzip cut sort uniq head tail wc xargs tee vim tmux jq sqlite3 psql ' +
  'kubectl aws gh python node java';
const SHARES = [0.25, 0.5, 0.75];
const PREDICTIONS: readonly (readonly PredictorName[])[] = [
  [],
  ['temporal'],
  ['frequency'],
  ['markov'],
  ['lookahead'],
  ['lookahead', 'markov'],
];
const CONTEXT = 512;
const ANSWER_TOKENS = 160;

/** Token ids of whole conversations. */
async function conversations(): Promise<number[][]> {
  const engine = await open({ model: path, precision: 'exact', contextLength: CONTEXT });
  try {
    const found: number[][] = [];
    for (const [seed, command] of COMMANDS.split(' ').entries()) {
      const answer = engine.generate(`How do I use ${command}?`, {
        temperature: 0.8,
        seed,
        maxTokens: ANSWER_TOKENS,
      });
      const ids = [...answer.promptIds];
      for await (const { token } of answer) if (token !== undefined) ids.push(token);
      found.push(ids);
    }
    return found;
  } finally {
    await engine.close();
  }
}

/** The model's backend over the file as it lies in memory: every expert is there. */
function backendOf(model: Model, config: BackendConfig, files: readonly Uint8Array[]): Backend {
  const backend = new (loadCpu().Backend)(config);
  for (const { name, layer, type, cols, rows, file, offsetBytes, byteLength } of model.tensors.dense) {
    const bytes = files[file]!.subarray(offsetBytes, offsetBytes + byteLength);
    backend.setTensor(name, layer, type.id, cols, rows, bytes);
  }
  model.tensors.experts.forEach(({ gate, up, down }, layer) => {
    backend.setExpertTypes(layer, gate.type.id, up.type.id, down.type.id);
  });
  backend.seal();
  backend.bindSlab(files);
  backend.bindLogits(new Float32Array(config.vocabulary));
  return backend;
}

interface Recording {
  readonly trace: RoutingTrace;
  /** (steps, hidden): as the router saw them, and with what of the layer is there while the last two reads are under way. */
  readonly routed: Float32Array;
  readonly grown: Float32Array;
}

/** Experts that are still being read when the engine asks: as many as `--window` lets be under way. */
const UNDER_WAY = 2;

function recordRoutes(model: Model, config: BackendConfig, texts: readonly (readonly number[])[]): Recording {
  const { layers, experts, expertsPerToken, hidden } = config;
  const files = model.files.map((file) => readFileSync(file.path));
  const backend = backendOf(model, config, files);
  const rows = new Int32Array(config.maxRows * ROW_WORDS);
  const ids = new Int32Array(config.maxRows * expertsPerToken);
  backend.bindRows(rows);
  backend.bindRoutes(ids, new Float32Array(ids.length));
  const steps = texts.reduce((sum, text) => sum + text.length, 0) * layers;
  const routed = new Float32Array(steps * hidden);
  const grown = new Float32Array(steps * hidden);
  const chosen = new Uint16Array(steps * expertsPerToken);
  let step = 0;
  for (const text of texts) {
    backend.resetSequence(0);
    text.forEach((token, position) => {
      rows[ROW_TOKEN] = token;
      rows[ROW_POSITION] = position;
      backend.begin(1);
      for (let layer = 0; layer < layers; layer++, step++) {
        backend.mix(layer);
        backend.copyStream(0, routed, step * hidden);
        chosen.set(ids.subarray(0, expertsPerToken), step * expertsPerToken);
        backend.shared(layer);
        const { gate, up, down } = model.tensors.experts[layer]!;
        for (const [rank, expert] of ids.subarray(0, expertsPerToken).entries()) {
          if (rank === expertsPerToken - UNDER_WAY) backend.copyStream(0, grown, step * hidden);
          const [gateAt, upAt, downAt] = [gate, up, down].map((m) => m.offsetBytes + expert * m.strideBytes);
          backend.expert(layer, expert, gate.file, gateAt!, upAt!, downAt!);
        }
        backend.combine(layer);
      }
    });
  }
  backend.close();
  const trace: RoutingTrace = {
    header: {
      layers,
      experts,
      expertsPerToken,
      promptTokens: 0,
      identity: identityOf(model),
      expertBytes: model.tensors.experts.map(
        ({ gate, up, down }) => gate.byteLength + up.byteLength + down.byteLength,
      ),
    },
    ending: 'complete',
    records: steps,
    stepLayer: Uint16Array.from({ length: steps }, (_, index) => index % layers),
    stepRows: new Uint16Array(steps).fill(1),
    stepFirst: Float64Array.from({ length: steps + 1 }, (_, index) => index * expertsPerToken),
    steps,
    ids: chosen,
  };
  return { trace, routed, grown };
}

/** The real predictors; `lookahead` gets the recorded streams. */
function predictionBy(
  names: readonly PredictorName[],
  model: Model,
  { trace }: Recording,
  streams: Float32Array,
  depth: number,
): ReplayPrediction | undefined {
  if (names.length === 0) return undefined;
  const { layers, experts, hidden, rmsEpsilon, expertsPerToken } = model.hyperparameters;
  const probe = new (loadCpu().RouterProbe)(layers, hidden, experts, rmsEpsilon);
  const files = model.files.map((file) => readFileSync(file.path));
  for (let layer = 0; layer < layers; layer++) {
    const [norm, router] = [['post_attention_norm.weight', 'ffn_norm.weight'], ['ffn_gate_inp.weight']].map(
      (wanted) => {
        const tensor = model.tensors.dense.find((each) => each.layer === layer && wanted.includes(each.name));
        if (tensor === undefined) throw new Error(`layer ${layer} has no ${wanted[0]}`);
        const { file, offsetBytes, byteLength, type } = tensor;
        return { type: type.id, bytes: files[file]!.subarray(offsetBytes, offsetBytes + byteLength) };
      },
    );
    probe.setLayer(layer, norm!.type, norm!.bytes, router!.type, experts, router!.bytes);
  }
  const panel = new Panel({
    names,
    shape: { layers, experts, expertsPerToken },
    lookahead: { probe, hidden, depth },
  });
  let step = 0;
  return {
    auto: false,
    depth,
    panel: {
      observe: (route) => {
        panel.observe(route, {
          layer: trace.stepLayer[step]!,
          rows: 1,
          values: streams,
          first: step * hidden,
        });
        step++;
      },
      predict: (layer, ahead, most) => panel.predict(layer, ahead, most),
    },
  };
}

/** Of the experts that the routers chose, how many had been named, for the layer so far ahead. */
function recall(
  names: readonly PredictorName[],
  model: Model,
  recording: Recording,
  streams: Float32Array,
  ahead: number,
): number {
  const { trace } = recording;
  const { layers, expertsPerToken } = trace.header;
  const { panel } = predictionBy(names, model, recording, streams, ahead)!;
  let right = 0;
  let all = 0;
  const route = { layer: 0, rows: 1, count: expertsPerToken, ids: new Int32Array(expertsPerToken), first: 0 };
  for (let step = 0; step + ahead < trace.steps; step++) {
    route.layer = trace.stepLayer[step]!;
    route.ids.set(trace.ids.subarray(step * expertsPerToken, (step + 1) * expertsPerToken));
    panel.observe(route, undefined);
    // Across the end of a token only those that need no stream could say anything.
    if (route.layer + ahead >= layers) continue;
    const hints = panel.predict(route.layer, ahead, expertsPerToken);
    const named = new Set(hints.experts.subarray(0, hints.count));
    const from = (step + ahead) * expertsPerToken;
    for (const expert of trace.ids.subarray(from, from + expertsPerToken)) if (named.has(expert)) right++;
    all += expertsPerToken;
  }
  return right / all;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const nameOf = (names: readonly PredictorName[]): string => (names.length === 0 ? 'none' : names.join(' + '));
const cellOf = ({ counters }: ReplayResult, tokens: number): string =>
  `${percent(counters.hits / counters.lookups)} (${(counters.bytesRead / tokens / 1e6).toFixed(2)})`;

const model = openModel(path);
const texts = await conversations();
const config: BackendConfig = {
  ...model.hyperparameters,
  maxRows: 1,
  maxSequences: 1,
  contextLength: CONTEXT,
  threads: 2,
  precision: 'exact',
  kvType: 'f32',
};
const recording = recordRoutes(model, config, texts);
const { header, steps } = recording.trace;
const tokens = steps / header.layers;
const meanBytes = header.expertBytes.reduce((sum, bytes) => sum + bytes, 0) / header.layers;

console.log(
  `${texts.length} answers, ${tokens} tokens, ${header.layers} layers of ${header.experts} experts, ` +
    `${header.expertsPerToken} per token\n`,
);
console.log(
  '| predictor | named, 1 layer ahead | asked before the experts | 2 layers ahead |\n|---|---|---|---|',
);
for (const names of PREDICTIONS.slice(1)) {
  const { routed, grown } = recording;
  const shares = [
    recall(names, model, recording, grown, 1),
    recall(names, model, recording, routed, 1),
    recall(names, model, recording, grown, 2),
  ];
  console.log(`| ${nameOf(names)} | ${shares.map(percent).join(' | ')} |`);
}
for (const share of SHARES) {
  const shape = shapeFor(header, Math.floor(share * header.layers * header.experts));
  const best = belady(recording.trace, shape);
  const bound = `${percent(best.hits / best.lookups)} (${(((best.lookups - best.hits) * meanBytes) / tokens / 1e6).toFixed(2)})`;
  console.log(
    `\n${100 * share} % of the experts; Belady ${bound}\n\n| predictor | ${POLICIES.join(' | ')} |`,
  );
  console.log(`|---${'|---'.repeat(POLICIES.length)}|`);
  for (const names of PREDICTIONS) {
    const cells = POLICIES.map((policy) => {
      const prediction = predictionBy(names, model, recording, recording.grown, 1);
      return cellOf(replay(recording.trace, { shape, policy, prediction, disk: undefined }), tokens);
    });
    console.log(`| ${nameOf(names)} | ${cells.join(' | ')} |`);
  }
}
