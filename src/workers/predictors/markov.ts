/**
 * Which experts follow which: counts of pairs, from the layer before to this one, and from this layer's last token to its
 * next. Learned while running; `MarkovTables` is what can be saved (markov-file.ts).
 *
 * The chance of an expert is the mean, over what was chosen before, of the share of times that it followed. A count is one
 * byte; a row whose largest reaches 255 is halved, which also forgets. For 60 layers of 512 experts the two tables take
 * 31 MB, so a model that would need more than 512 MB is refused.
 */
import { MoestreamError } from '../../errors.ts';
import { formatBytes } from '../../pipeline/memory.ts';
import type { Predictor, PredictorShape, Route, Votes } from './predictor.ts';

const TABLES_BYTES_MAX = 512 * 1024 ** 2;
const COUNT_MAX = 255;

/** Pairs of one kind. */
export interface PairTable {
  /** (layers, experts before, experts after) */
  readonly pairs: Uint8Array;
  /** (layers, experts before): how often it came before, halved with its row. */
  readonly uses: Uint32Array;
}

export interface MarkovTables {
  /** From the layer before, and from the token before. */
  readonly acrossLayers: PairTable;
  readonly acrossTokens: PairTable;
}

export function emptyTables({ layers, experts }: PredictorShape): MarkovTables {
  const bytes = 2 * layers * experts * (experts + 4);
  if (bytes > TABLES_BYTES_MAX) {
    throw new MoestreamError(
      'USAGE',
      `the predictor markov would need ${formatBytes(bytes)} for ${layers} layers of ${experts} experts`,
      { hint: 'Use --predict lookahead or frequency.' },
    );
  }
  const table = (): PairTable => ({
    pairs: new Uint8Array(layers * experts * experts),
    uses: new Uint32Array(layers * experts),
  });
  return { acrossLayers: table(), acrossTokens: table() };
}

export class Markov implements Predictor {
  readonly name = 'markov';
  readonly tables: MarkovTables;
  private readonly shape: PredictorShape;
  /** (layers, experts): each layer's last choice, the last row's first; their number; and of that of the last row. */
  private readonly last: Int32Array;
  private readonly counts: Int32Array;
  private layerNow = -1;
  /** (experts) */
  private readonly chance: Float64Array;

  constructor(shape: PredictorShape, tables: MarkovTables = emptyTables(shape)) {
    this.shape = shape;
    this.tables = tables;
    this.last = new Int32Array(shape.layers * shape.experts);
    this.counts = new Int32Array(shape.layers);
    this.chance = new Float64Array(shape.experts);
  }

  /** Learns from the last row of a step: pairs of whole unions would say nothing. */
  observe(route: Route): void {
    const { layer, count, ids, first } = route;
    const { layers, experts } = this.shape;
    if (this.layerNow === (layer + layers - 1) % layers)
      this.learn(this.tables.acrossLayers, this.layerNow, route);
    if (this.counts[layer]! > 0) this.learn(this.tables.acrossTokens, layer, route);
    for (let index = 0; index < count; index++) this.last[layer * experts + index] = ids[first + index]!;
    this.counts[layer] = count;
    this.layerNow = layer;
  }

  vote(layer: number, ahead: number, votes: Votes): void {
    this.chance.fill(0);
    const byTokens = this.collect(this.tables.acrossTokens, layer, layer);
    const byLayers = ahead === 1 ? this.collect(this.tables.acrossLayers, this.layerNow, layer) : 0;
    const kinds = byTokens + byLayers;
    if (kinds === 0) return;
    for (let expert = 0; expert < this.shape.experts; expert++) {
      if (this.chance[expert]! > 0) votes.add(expert, this.chance[expert]! / kinds);
    }
  }

  private learn(table: PairTable, before: number, { layer, count, ids, first }: Route): void {
    const { experts, expertsPerToken } = this.shape;
    const sources = Math.min(this.counts[before]!, expertsPerToken);
    const targets = Math.min(count, expertsPerToken);
    for (let source = 0; source < sources; source++) {
      const use = layer * experts + this.last[before * experts + source]!;
      const row = use * experts;
      table.uses[use] = table.uses[use]! + 1;
      for (let target = 0; target < targets; target++) {
        const at = row + ids[first + target]!;
        table.pairs[at] = table.pairs[at]! + 1;
        if (table.pairs[at] === COUNT_MAX) this.halve(table, use);
      }
    }
  }

  private halve(table: PairTable, use: number): void {
    const { experts } = this.shape;
    for (let at = use * experts; at < (use + 1) * experts; at++) table.pairs[at] = table.pairs[at]! >> 1;
    table.uses[use] = table.uses[use]! >> 1;
  }

  /** Adds each expert's chance after what `before` chose last. Returns 1 when anything was known, else 0. */
  private collect(table: PairTable, before: number, layer: number): number {
    const { experts } = this.shape;
    const { chance } = this;
    const sources = before < 0 ? 0 : this.counts[before]!;
    let known = 0;
    for (let source = 0; source < sources; source++) {
      if (table.uses[layer * experts + this.last[before * experts + source]!]! > 0) known++;
    }
    for (let source = 0; source < sources; source++) {
      const use = layer * experts + this.last[before * experts + source]!;
      const uses = table.uses[use]!;
      if (uses === 0) continue;
      const share = 1 / (uses * known);
      const row = use * experts;
      for (let expert = 0; expert < experts; expert++) {
        chance[expert] = chance[expert]! + table.pairs[row + expert]! * share;
      }
    }
    return known > 0 ? 1 : 0;
  }
}
