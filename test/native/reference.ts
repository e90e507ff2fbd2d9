/**
 * The forward pass once more, in float64 and as plainly as it can be written: no cache, no batch, no quantisation.
 *
 * A whole sequence goes through from its first token every time, so the reference shares no idea with the backend that
 * could be wrong in both: keys and values are recomputed, the recurrence starts at zero, experts run in a loop.
 */
import type { BackendConfig } from '../../dist/native.js';

export interface Tensor {
  readonly name: string;
  readonly layer: number;
  readonly cols: number;
  readonly rows: number;
  readonly values: Float32Array;
}

/** Expert e of a matrix is the e-th part of `values`. */
export interface ExpertMatrices {
  readonly gate: Float32Array;
  readonly up: Float32Array;
  readonly down: Float32Array;
}

export interface Model {
  readonly config: BackendConfig;
  readonly tensors: readonly Tensor[];
  readonly experts: readonly ExpertMatrices[];
}

export interface ReferenceResult {
  /** One row of logits per token. */
  readonly logits: Float64Array[];
  /** (layer, token) -> chosen experts in falling probability. */
  readonly routes: number[][][];
  /** The smallest gap between the last chosen and the first rejected probability, relative to the former. */
  readonly smallestMargin: number;
}

type Values = ArrayLike<number>;

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const silu = (x: number): number => x * sigmoid(x);
const softplus = (x: number): number => (x > 20 ? x : Math.log1p(Math.exp(x)));

function dot(a: Values, b: Values, count: number, aStart = 0, bStart = 0): number {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += a[aStart + i]! * b[bStart + i]!;
  return sum;
}

/** `first` is the matrix' first value in a pack of several. */
function times(matrix: Values, x: Values, rows: number, first = 0): Float64Array {
  const cols = x.length;
  return Float64Array.from({ length: rows }, (_, r) => dot(matrix, x, cols, first + r * cols));
}

function rmsNorm(x: Values, weight: Values, epsilon: number): Float64Array {
  const scale = 1 / Math.sqrt(dot(x, x, x.length) / x.length + epsilon);
  return Float64Array.from(x, (value, i) => value * scale * weight[i]!);
}

function softmax(scores: Values): Float64Array {
  const maximum = Math.max(...Array.from(scores));
  const powers = Float64Array.from(scores, (score) => Math.exp(score - maximum));
  const sum = powers.reduce((total, each) => total + each, 0);
  return powers.map((each) => each / sum);
}

export class Reference {
  readonly #config: BackendConfig;
  readonly #tensors = new Map<string, Float32Array>();
  readonly #experts: readonly ExpertMatrices[];
  #routes: number[][][] = [];
  #smallestMargin = Number.POSITIVE_INFINITY;

  constructor(model: Model) {
    this.#config = model.config;
    this.#experts = model.experts;
    for (const tensor of model.tensors) this.#tensors.set(`${tensor.layer}/${tensor.name}`, tensor.values);
  }

  forward(ids: readonly number[]): ReferenceResult {
    const { hidden, layers, vocabulary, rmsEpsilon } = this.#config;
    const embedding = this.#tensor(-1, 'token_embd.weight');
    const head = this.#tensors.get('-1/output.weight') ?? embedding;
    let stream = ids.map((id) => Float64Array.from(embedding.subarray(id * hidden, (id + 1) * hidden)));
    this.#routes = Array.from({ length: layers }, () => []);
    this.#smallestMargin = Number.POSITIVE_INFINITY;
    for (let layer = 0; layer < layers; layer++) {
      const normed = stream.map((x) => rmsNorm(x, this.#tensor(layer, 'attn_norm.weight'), rmsEpsilon));
      const mixed =
        this.#config.attentionLayers[layer] === 1
          ? this.#attention(layer, normed)
          : this.#deltaNet(layer, normed);
      stream = stream.map((x, t) => x.map((value, i) => value + mixed[t]![i]!));
      const norm =
        this.#tensors.get(`${layer}/ffn_norm.weight`) ?? this.#tensor(layer, 'post_attention_norm.weight');
      stream = stream.map((x) => {
        const added = this.#moe(layer, rmsNorm(x, norm, rmsEpsilon));
        return x.map((value, i) => value + added[i]!);
      });
    }
    const finalNorm = this.#tensor(-1, 'output_norm.weight');
    const logits = stream.map((x) => times(head, rmsNorm(x, finalNorm, rmsEpsilon), vocabulary));
    return { logits, routes: this.#routes, smallestMargin: this.#smallestMargin };
  }

  #tensor(layer: number, name: string): Float32Array {
    const found = this.#tensors.get(`${layer}/${name}`);
    if (found === undefined) throw new Error(`the test model has no ${name} in layer ${layer}`);
    return found;
  }

  #rotate(head: Float64Array, position: number): Float64Array {
    const { rotaryDims, ropeTheta } = this.#config;
    const half = rotaryDims / 2;
    const rotated = head.slice();
    for (let j = 0; j < half; j++) {
      const angle = position * ropeTheta ** ((-2 * j) / rotaryDims);
      rotated[j] = head[j]! * Math.cos(angle) - head[j + half]! * Math.sin(angle);
      rotated[j + half] = head[j + half]! * Math.cos(angle) + head[j]! * Math.sin(angle);
    }
    return rotated;
  }

  #attention(layer: number, inputs: readonly Float64Array[]): Float64Array[] {
    const { hidden, heads, kvHeads, headDim, gatedAttention, rmsEpsilon } = this.#config;
    const headWidth = headDim * (gatedAttention ? 2 : 1);
    const normed = (x: Float64Array, name: string, position: number): Float64Array =>
      this.#rotate(rmsNorm(x, this.#tensor(layer, name), rmsEpsilon), position);
    const keys = inputs.map((x, position) => {
      const all = times(this.#tensor(layer, 'attn_k.weight'), x, kvHeads * headDim);
      const head = (h: number) => all.slice(h * headDim, (h + 1) * headDim);
      return Array.from({ length: kvHeads }, (_, h) => normed(head(h), 'attn_k_norm.weight', position));
    });
    const values = inputs.map((x) => times(this.#tensor(layer, 'attn_v.weight'), x, kvHeads * headDim));
    return inputs.map((x, position) => {
      const queries = times(this.#tensor(layer, 'attn_q.weight'), x, heads * headWidth);
      const out = new Float64Array(heads * headDim);
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads));
        const start = h * headWidth;
        const query = normed(queries.slice(start, start + headDim), 'attn_q_norm.weight', position);
        const past = keys.slice(0, position + 1);
        const weights = softmax(past.map((key) => dot(query, key[kv]!, headDim) / Math.sqrt(headDim)));
        for (let i = 0; i < headDim; i++) {
          const sum = weights.reduce((total, w, p) => total + w * values[p]![kv * headDim + i]!, 0);
          out[h * headDim + i] = gatedAttention ? sum * sigmoid(queries[start + headDim + i]!) : sum;
        }
      }
      return times(this.#tensor(layer, 'attn_output.weight'), out, hidden);
    });
  }

  /** beta and alpha of every value head, from two matrices or from one that groups them by key head. */
  #deltaGates(layer: number, x: Float64Array): { beta: Float64Array; alpha: Float64Array } {
    const { deltaValueHeads, deltaKeyHeads } = this.#config;
    const joined = this.#tensors.get(`${layer}/ssm_ba.weight`);
    if (joined === undefined) {
      return {
        beta: times(this.#tensor(layer, 'ssm_beta.weight'), x, deltaValueHeads),
        alpha: times(this.#tensor(layer, 'ssm_alpha.weight'), x, deltaValueHeads),
      };
    }
    const both = times(joined, x, 2 * deltaValueHeads);
    const group = deltaValueHeads / deltaKeyHeads;
    const at = (head: number, which: number): number =>
      both[Math.floor(head / group) * 2 * group + which * group + (head % group)]!;
    return {
      beta: Float64Array.from({ length: deltaValueHeads }, (_, head) => at(head, 0)),
      alpha: Float64Array.from({ length: deltaValueHeads }, (_, head) => at(head, 1)),
    };
  }

  #convolved(layer: number, inputs: readonly Float64Array[]): Float64Array[] {
    const { deltaKeyHeads, deltaValueHeads, deltaHeadDim, convKernel } = this.#config;
    const channels = (2 * deltaKeyHeads + deltaValueHeads) * deltaHeadDim;
    const weight = this.#tensor(layer, 'ssm_conv1d.weight');
    const projected = inputs.map((x) => times(this.#tensor(layer, 'attn_qkv.weight'), x, channels));
    return projected.map((_, now) =>
      Float64Array.from({ length: channels }, (_unused, c) => {
        let sum = 0;
        for (let tap = 0; tap < convKernel; tap++) {
          sum += weight[c * convKernel + tap]! * (projected[now - convKernel + 1 + tap]?.[c] ?? 0);
        }
        return silu(sum);
      }),
    );
  }

  #deltaNet(layer: number, inputs: readonly Float64Array[]): Float64Array[] {
    const {
      hidden,
      deltaKeyHeads,
      deltaValueHeads,
      deltaHeadDim: dim,
      tiledValueHeads,
      rmsEpsilon,
    } = this.#config;
    const group = deltaValueHeads / deltaKeyHeads;
    const states = Array.from({ length: deltaValueHeads }, () => new Float64Array(dim * dim));
    const normed = (x: Float64Array): Float64Array => {
      const scale = 1 / Math.sqrt(dot(x, x, dim) + 1e-6);
      return x.map((value) => value * scale);
    };
    return this.#convolved(layer, inputs).map((conv, t) => {
      const x = inputs[t]!;
      const z = times(this.#tensor(layer, 'attn_gate.weight'), x, deltaValueHeads * dim);
      const { beta, alpha } = this.#deltaGates(layer, x);
      const out = new Float64Array(deltaValueHeads * dim);
      for (let head = 0; head < deltaValueHeads; head++) {
        const keyHead = tiledValueHeads ? head % deltaKeyHeads : Math.floor(head / group);
        const part = (index: number) => conv.slice(index * dim, (index + 1) * dim);
        const query = normed(part(keyHead)).map((value) => value / Math.sqrt(dim));
        const key = normed(part(deltaKeyHeads + keyHead));
        const value = part(2 * deltaKeyHeads + head);
        const rate = this.#tensor(layer, 'ssm_a')[head]!;
        const decay = Math.exp(rate * softplus(alpha[head]! + this.#tensor(layer, 'ssm_dt.bias')[head]!));
        const read = deltaStep(states[head]!, query, key, value, decay, sigmoid(beta[head]!));
        const scaled = rmsNorm(read, this.#tensor(layer, 'ssm_norm.weight'), rmsEpsilon);
        for (let i = 0; i < dim; i++) out[head * dim + i] = scaled[i]! * silu(z[head * dim + i]!);
      }
      return times(this.#tensor(layer, 'ssm_out.weight'), out, hidden);
    });
  }

  #choose(layer: number, probabilities: Float64Array): number[] {
    const { experts, expertsPerToken } = this.#config;
    const order = Array.from({ length: experts }, (_, e) => e);
    order.sort((a, b) => probabilities[b]! - probabilities[a]! || a - b);
    for (let i = 0; i < expertsPerToken && i + 1 < experts; i++) {
      const [one, next] = [probabilities[order[i]!]!, probabilities[order[i + 1]!]!];
      this.#smallestMargin = Math.min(this.#smallestMargin, (one - next) / one);
    }
    const chosen = order.slice(0, expertsPerToken);
    this.#routes[layer]!.push(chosen);
    return chosen;
  }

  #moe(layer: number, x: Float64Array): Float64Array {
    const { hidden, experts, expertWidth, sharedWidth } = this.#config;
    const probabilities = softmax(times(this.#tensor(layer, 'ffn_gate_inp.weight'), x, experts));
    const chosen = this.#choose(layer, probabilities);
    const total = chosen.reduce((sum, e) => sum + probabilities[e]!, 0);
    const out = new Float64Array(hidden);
    const add = (weight: number, part: Float64Array) =>
      part.forEach((value, i) => {
        out[i] = out[i]! + weight * value;
      });
    const size = expertWidth * hidden;
    for (const e of chosen) {
      const { gate, up, down } = this.#experts[layer]!;
      add(probabilities[e]! / total, feedForward(x, gate, up, down, expertWidth, hidden, e * size));
    }
    if (sharedWidth > 0) {
      const [gate, up, down] = ['gate', 'up', 'down'].map((each) =>
        this.#tensor(layer, `ffn_${each}_shexp.weight`),
      );
      const weight = sigmoid(dot(this.#tensor(layer, 'ffn_gate_inp_shexp.weight'), x, hidden));
      add(weight, feedForward(x, gate!, up!, down!, sharedWidth, hidden, 0));
    }
    return out;
  }
}

function feedForward(
  x: Float64Array,
  gate: Values,
  up: Values,
  down: Values,
  width: number,
  hidden: number,
  first: number,
): Float64Array {
  const gated = times(gate, x, width, first);
  const raised = times(up, x, width, first);
  return times(
    down,
    gated.map((value, i) => silu(value) * raised[i]!),
    hidden,
    first,
  );
}

/** One token of the gated delta rule; `state` is (keys, values) and changes in place. */
function deltaStep(
  state: Float64Array,
  query: Float64Array,
  key: Float64Array,
  value: Float64Array,
  decay: number,
  beta: number,
): Float64Array {
  const dim = value.length;
  for (let i = 0; i < state.length; i++) state[i] = state[i]! * decay;
  const update = value.map((target, v) => {
    let held = 0;
    for (let k = 0; k < dim; k++) held += state[k * dim + v]! * key[k]!;
    return (target - held) * beta;
  });
  for (let k = 0; k < dim; k++) {
    for (let v = 0; v < dim; v++) state[k * dim + v] = state[k * dim + v]! + key[k]! * update[v]!;
  }
  return value.map((_, v) => {
    let sum = 0;
    for (let k = 0; k < dim; k++) sum += state[k * dim + v]! * query[k]!;
    return sum;
  });
}
