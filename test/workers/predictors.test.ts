/** Each predictor by itself: what it learns, how votes combine, and that the routers asked ahead are the backend's own. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Model, openModel } from '../../dist/model/model.js';
import { loadCpu, ROW_POSITION, ROW_TOKEN, ROW_WORDS } from '../../dist/native.js';
import { Frequency } from '../../dist/workers/predictors/frequency.js';
import { emptyTables, Markov } from '../../dist/workers/predictors/markov.js';
import { emptyHints, type Predictor, Votes } from '../../dist/workers/predictors/predictor.js';
import { Temporal } from '../../dist/workers/predictors/temporal.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const SHAPE = { layers: 3, experts: 16, expertsPerToken: 2 };

function hear(predictor: Predictor, layer: number, ids: readonly number[]): void {
  predictor.observe({ layer, rows: 1, count: ids.length, ids: Int32Array.from(ids), first: 0 }, undefined);
}

function named(predictor: Predictor, layer: number, ahead = 1): number[] {
  const votes = new Votes(SHAPE.experts);
  const hints = emptyHints(SHAPE.experts);
  predictor.vote(layer, ahead, votes);
  votes.rank(SHAPE.experts, hints);
  return [...hints.experts.subarray(0, hints.count)];
}

describe('votes', () => {
  it('rank by the chance that any of them is right, the lower expert first among equals', () => {
    const vote = fc.tuple(fc.nat(15), fc.double({ min: 0.01, max: 0.9, noNaN: true }));
    fc.assert(
      fc.property(fc.array(vote, { maxLength: 40 }), fc.integer({ min: 1, max: 16 }), (given, most) => {
        const votes = new Votes(16);
        const doubt = new Map<number, number>();
        for (const [expert, confidence] of given) {
          votes.add(expert, confidence);
          doubt.set(expert, Math.max(1e-6, (doubt.get(expert) ?? 1) * (1 - confidence)));
        }
        const expected = [...doubt].sort((a, b) => a[1] - b[1] || a[0] - b[0]).slice(0, most);
        const hints = emptyHints(16);
        votes.rank(most, hints);
        expect([...hints.experts.subarray(0, hints.count)]).toEqual(expected.map(([expert]) => expert));
        // Nothing is left for the next layer.
        votes.rank(16, hints);
        expect(hints.count).toBe(0);
      }),
    );
  });
});

describe('predictors', () => {
  it('temporal names what the layer chose last', () => {
    const temporal = new Temporal(SHAPE);
    hear(temporal, 1, [3, 7]);
    hear(temporal, 1, [9, 2]);
    expect(named(temporal, 1)).toEqual([2, 9]);
    expect(named(temporal, 2)).toEqual([]);
  });

  it('frequency names what it chose most, and forgets', () => {
    const frequency = new Frequency(SHAPE);
    for (let token = 0; token < 100; token++) hear(frequency, 0, [5, token % 4]);
    expect(named(frequency, 0)[0]).toBe(5);
    for (let token = 0; token < 200; token++) hear(frequency, 0, [6, 8]);
    expect(named(frequency, 0).slice(0, 2)).toEqual([6, 8]);
    // Weights are scaled down on the way; 10,000 tokens pass that many times.
    for (let token = 0; token < 10_000; token++) hear(frequency, 0, [1, 2]);
    expect(named(frequency, 0).slice(0, 2)).toEqual([1, 2]);
  });

  it('markov names what followed, over more repetitions than a byte counts', () => {
    const markov = new Markov(SHAPE);
    for (let token = 0; token < 600; token++) {
      const odd = token % 2;
      hear(markov, 0, odd ? [1, 2] : [3, 4]);
      hear(markov, 1, odd ? [5, 6] : [7, 8]);
      hear(markov, 2, [9, 10]);
    }
    // The last token was odd: both the layer before and the token before say what comes.
    hear(markov, 0, [3, 4]);
    expect(named(markov, 1).slice(0, 2).toSorted()).toEqual([7, 8]);
    hear(markov, 1, [7, 8]);
    hear(markov, 2, [9, 10]);
    hear(markov, 0, [1, 2]);
    expect(named(markov, 1).slice(0, 2).toSorted()).toEqual([5, 6]);
  });

  it('markov refuses a model for which its tables would be too large', () => {
    expect(() => emptyTables({ layers: 60, experts: 65536, expertsPerToken: 8 })).toThrow(/would need/);
  });
});

/** The final norm and the head in plain arithmetic: one token's logit for a stream. */
function openHead(
  { tensors, hyperparameters }: Model,
  bytesOf: (tensor: { offsetBytes: number; byteLength: number }) => Uint8Array,
): (stream: Float32Array, token: number) => number {
  const { hidden, rmsEpsilon } = hyperparameters;
  const of = (...names: readonly string[]) => tensors.dense.find(({ name }) => names.includes(name))!;
  const values = (tensor: ReturnType<typeof of>): Float32Array => {
    const out = new Float32Array(tensor.rows * tensor.cols);
    loadCpu().dequantize(tensor.type.id, bytesOf(tensor), out);
    return out;
  };
  const norm = values(of('output_norm.weight'));
  const head = values(of('output.weight') ?? of('token_embd.weight'));
  return (stream, token) => {
    const scale = 1 / Math.sqrt(stream.reduce((sum, x) => sum + x * x, 0) / hidden + rmsEpsilon);
    return stream.reduce((sum, x, at) => sum + x * scale * norm[at]! * head[token * hidden + at]!, 0);
  };
}

describe('the routers asked ahead', () => {
  it('are the routers: asked about the stream that they saw, they choose what they chose', () => {
    const model = openModel(BUILT_IN_MODEL);
    const { layers, experts, expertsPerToken, hidden, rmsEpsilon } = model.hyperparameters;
    const file = readFileSync(BUILT_IN_MODEL);
    const cpu = loadCpu();
    const backend = new cpu.Backend({
      ...model.hyperparameters,
      maxRows: 4,
      maxSequences: 1,
      contextLength: 64,
      threads: 1,
      precision: 'exact',
      kvType: 'f32',
    });
    const probe = new cpu.RouterProbe(layers, hidden, experts, rmsEpsilon);
    const bytesOf = (tensor: { offsetBytes: number; byteLength: number }): Uint8Array =>
      file.subarray(tensor.offsetBytes, tensor.offsetBytes + tensor.byteLength);
    for (const tensor of model.tensors.dense) {
      const { name, layer, type, cols, rows } = tensor;
      backend.setTensor(name, layer, type.id, cols, rows, bytesOf(tensor));
    }
    for (let layer = 0; layer < layers; layer++) {
      const { gate, up, down } = model.tensors.experts[layer]!;
      backend.setExpertTypes(layer, gate.type.id, up.type.id, down.type.id);
      const of = (name: string) =>
        model.tensors.dense.find((each) => each.layer === layer && each.name === name)!;
      const [norm, router] = [of('post_attention_norm.weight'), of('ffn_gate_inp.weight')];
      probe.setLayer(layer, norm.type.id, bytesOf(norm), router.type.id, experts, bytesOf(router));
    }
    const rows = new Int32Array(4 * ROW_WORDS);
    const ids = new Int32Array(4 * expertsPerToken);
    backend.bindRows(rows);
    backend.bindRoutes(ids, new Float32Array(ids.length));
    backend.bindSlab([file]);
    const { vocabulary } = model.hyperparameters;
    const logits = new Float32Array(4 * vocabulary);
    backend.bindLogits(logits);
    backend.seal();
    for (let row = 0; row < 4; row++) {
      rows[row * ROW_WORDS + ROW_TOKEN] = 40 + 7 * row;
      rows[row * ROW_WORDS + ROW_POSITION] = row;
    }
    const streams = new Float32Array(hidden + 3);
    const grown = new Float32Array(4 * hidden);
    const asked = new Int32Array(expertsPerToken + 1);
    backend.begin(4);
    for (let layer = 0; layer < layers; layer++) {
      backend.mix(layer);
      for (let row = 0; row < 4; row++) {
        backend.copyStream(row, streams, 3);
        probe.probe(layer, streams, 3, asked, 1, expertsPerToken);
        const chosen = ids.subarray(row * expertsPerToken, (row + 1) * expertsPerToken);
        expect([...asked.subarray(1)]).toEqual([...chosen]);
      }
      expect(() => backend.copyStream(4, streams, 0)).toThrow(/not in this step/);
      expect(() => backend.copyStream(0, streams, 4)).toThrow(/does not fit/);
      backend.shared(layer);
      const { gate, up, down } = model.tensors.experts[layer]!;
      for (const expert of new Set(ids)) {
        const at = [gate, up, down].map((each) => each.offsetBytes + expert * each.strideBytes);
        backend.expert(layer, expert, 0, at[0]!, at[1]!, at[2]!);
      }
      for (let row = 0; row < 4; row++) backend.copyStream(row, grown, row * hidden);
      backend.combine(layer);
    }
    // With all experts in it, the stream is what combine makes of it: the head sees the last layer's.
    backend.logits(0, 4, 0);
    const head = openHead(model, bytesOf);
    for (let row = 0; row < 4; row++) {
      const stream = grown.subarray(row * hidden, (row + 1) * hidden);
      for (let token = 0; token < vocabulary; token += 97)
        expect(logits[row * vocabulary + token]).toBeCloseTo(head(stream, token), 3);
    }
    expect(() => probe.probe(layers, streams, 0, asked, 0, 1)).toThrow(/no router/);
    expect(() => probe.probe(0, streams, 4, asked, 0, 1)).toThrow(/do not fit/);
    expect(() => probe.setLayer(0, 0, new Uint8Array(3), 0, experts, new Uint8Array(3))).toThrow(
      /do not fit/,
    );
    backend.close();
  });
});
