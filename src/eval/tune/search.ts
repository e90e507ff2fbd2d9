/**
 * Finding settings that are better than the defaults, without fooling oneself.
 *
 * Coordinate descent: one axis after another, the incumbent against the axis's other values. Per axis a race: rounds in
 * which everyone runs once, interleaved and order-balanced; after four rounds, and each two more, the worse half of the
 * challengers goes (successive halving), until one is left, and that one runs on until it is told from the incumbent or is not
 * worth the time. Passes repeat until one changes nothing, because settings lean on each other.
 *
 * Many comparisons make false winners: with forty of them, two will look good by chance. So what was found is measured
 * against the defaults again, with fresh runs in reversed order, and only what holds there is a winner.
 *
 * Everything that is decided follows from the outcomes of rounds and the seconds they took, both of which a journal can
 * play back; a resumed search takes the same way again.
 */
import { pairedRatio } from '../paired.ts';
import { balancedOrder } from '../schedule.ts';
import type { TunableSettings } from '../settings.ts';
import type { Ratio } from '../statistics.ts';

/** One run of one candidate. */
export type Outcome =
  | {
      readonly seconds: number;
      readonly score: number;
      readonly p99Millis: number;
      /** A digest of what was computed: settings that are tuned never change it. */
      readonly drawn: string;
    }
  | { readonly seconds: number; readonly failure: string };

type Success = Extract<Outcome, { readonly score: number }>;

/** What measures: the real machine, a journal in front of it, or a simulated one. */
export interface Bench {
  /** Runs every candidate once, in this order. */
  round(candidates: readonly TunableSettings[]): Promise<readonly Outcome[]>;
}

export interface Axis {
  readonly name: string;
  /** What the axis can be set to; the incumbent's own value is skipped. */
  readonly values: readonly TunableSettings[];
  /** Whether it does anything with these settings, defaults included. Default: always. */
  readonly applies?: (settings: TunableSettings) => boolean;
}

export interface SearchOptions {
  readonly axes: readonly Axis[];
  /** The values that the engine takes when none is given. */
  readonly defaults: TunableSettings;
  readonly budgetSeconds: number;
  readonly onStep?: (step: Step) => void;
}

/** What came of one axis, or of the confirmation. */
export interface Step {
  readonly axis: string;
  readonly incumbent: TunableSettings;
  readonly rounds: number;
  readonly challengers: readonly {
    readonly settings: TunableSettings;
    readonly ratio: number | undefined;
    readonly failure: string | undefined;
  }[];
  readonly accepted: TunableSettings | undefined;
  readonly sentence: string;
}

export interface Comparison extends Ratio {
  /** Of the slowest hundredth of tokens: candidate by base. */
  readonly p99Ratio: number;
}

export interface SearchResult {
  /** What is better than the defaults, by the confirmation. */
  readonly winner: TunableSettings | undefined;
  /** What the search had arrived at; empty for the defaults. */
  readonly best: TunableSettings;
  readonly confirmation: Comparison | undefined;
  readonly steps: readonly Step[];
  readonly secondsUsed: number;
  readonly runs: number;
  /** Axes that the time did not reach. */
  readonly untried: readonly string[];
  readonly sentence: string;
}

const PASSES_MAX = 3;
/** Less is not worth a profile. */
const GAIN_MIN = 0.01;
const ROUNDS_FIRST = 4;
const ROUNDS_DECIDING_MIN = 6;
/** After so many rounds only what looks worth it goes on, and after so many nothing does. */
const ROUNDS_HOPING_MAX = 12;
const ROUNDS_DECIDING_MAX = 20;
const ROUNDS_CONFIRMING = 10;

const keyOf = (settings: TunableSettings): string =>
  JSON.stringify(Object.entries(settings).sort(([a], [b]) => (a < b ? -1 : 1)));

class Search {
  private readonly steps: Step[] = [];
  private readonly untried = new Set<string>();
  private secondsUsed = 0;
  private runs = 0;
  private drawn: string | undefined;
  private readonly bench: Bench;
  private readonly options: SearchOptions;

  constructor(bench: Bench, options: SearchOptions) {
    this.bench = bench;
    this.options = options;
  }

  async run(): Promise<SearchResult> {
    await this.probe();
    let incumbent: TunableSettings = {};
    const seenAt = new Map<string, string>();
    for (let pass = 0; pass < PASSES_MAX; pass++) {
      const before = keyOf(incumbent);
      for (const axis of this.options.axes) {
        // Nothing has changed since this axis was looked at.
        if (seenAt.get(axis.name) === keyOf(incumbent)) continue;
        const challengers = this.challengersOf(axis, incumbent);
        if (challengers.length === 0) continue;
        if (!this.affords((challengers.length + 1) * ROUNDS_FIRST)) {
          if (pass === 0) this.untried.add(axis.name);
          continue;
        }
        incumbent = (await this.race(axis.name, incumbent, challengers)) ?? incumbent;
        seenAt.set(axis.name, keyOf(incumbent));
      }
      if (keyOf(incumbent) === before) break;
    }
    return this.confirm(incumbent);
  }

  /** The defaults alone: what a run takes, what it computes, and a disk that is awake. It is compared with nothing. */
  private async probe(): Promise<void> {
    const defaults = new Candidate({});
    for (const outcome of await this.bench.round([defaults.settings])) this.count(defaults, outcome);
    if (defaults.failure !== undefined) throw new TuningFailed(defaults.failure);
    this.drawn = defaults.outcomes[0]?.drawn;
  }

  private count(candidate: Candidate, outcome: Outcome): void {
    this.secondsUsed += outcome.seconds;
    this.runs++;
    candidate.note(outcome);
  }

  private challengersOf(axis: Axis, incumbent: TunableSettings): TunableSettings[] {
    if (axis.applies?.({ ...this.options.defaults, ...incumbent }) === false) return [];
    const effective = (settings: TunableSettings): string => keyOf({ ...this.options.defaults, ...settings });
    return axis.values
      .map((value) => ({ ...incumbent, ...value }))
      .filter((candidate) => effective(candidate) !== effective(incumbent));
  }

  /** Whether so many runs fit, and the confirmation behind them. */
  private affords(runs: number): boolean {
    const secondsPerRun = this.secondsUsed / this.runs;
    const left = this.options.budgetSeconds - this.secondsUsed;
    return secondsPerRun * (runs + 2 * ROUNDS_CONFIRMING) <= left;
  }

  /** One balanced pair of rounds, noted with the candidates. */
  private async pairOfRounds(candidates: readonly Candidate[]): Promise<void> {
    for (const order of balancedOrder(candidates.length, 2)) {
      const outcomes = await this.bench.round(order.map((place) => candidates[place]!.settings));
      outcomes.forEach((outcome, index) => {
        this.count(candidates[order[index]!]!, outcome);
      });
    }
    for (const candidate of candidates) candidate.checkOutput(this.drawn);
  }

  /** The settings that beat the incumbent, if any do. */
  private async race(
    axis: string,
    incumbent: TunableSettings,
    challengers: readonly TunableSettings[],
  ): Promise<TunableSettings | undefined> {
    const base = new Candidate(incumbent);
    const all = challengers.map((settings) => new Candidate(settings));
    let alive = all;
    const finish = (accepted: Candidate | undefined, sentence: string): TunableSettings | undefined => {
      this.note({
        axis,
        incumbent,
        rounds: base.outcomes.length,
        challengers: all.map((each) => ({
          settings: each.settings,
          ratio: each.failure === undefined ? ratioOf(base, each) : undefined,
          failure: each.failure,
        })),
        accepted: accepted?.settings,
        sentence,
      });
      return accepted?.settings;
    };
    for (;;) {
      do await this.pairOfRounds([base, ...alive.filter((each) => each.failure === undefined)]);
      while (base.failure === undefined && base.outcomes.length < ROUNDS_FIRST);
      if (base.failure !== undefined) throw new TuningFailed(base.failure);
      alive = alive.filter((each) => each.failure === undefined);
      if (alive.length === 0) return finish(undefined, 'every other value fails');
      alive.sort((a, b) => ratioOf(base, b) - ratioOf(base, a));
      if (alive.length > 1) {
        alive = alive.slice(0, Math.ceil(alive.length / 2));
      } else {
        const [last] = alive as [Candidate];
        const verdict = verdictOf(base, last);
        if (verdict !== undefined) return finish(verdict.accepted ? last : undefined, verdict.sentence);
      }
      if (!this.affords((alive.length + 1) * 2)) return finish(undefined, 'the time is over');
    }
  }

  private async confirm(best: TunableSettings): Promise<SearchResult> {
    const untried = [...this.untried];
    const result = (winner: TunableSettings | undefined, sentence: string, confirmation?: Comparison) => ({
      winner,
      best,
      confirmation,
      steps: this.steps,
      secondsUsed: this.secondsUsed,
      runs: this.runs,
      untried,
      sentence,
    });
    if (Object.keys(best).length === 0) {
      const nothing =
        this.steps.length === 0
          ? 'the time does not hold a single comparison'
          : 'nothing was better than the defaults';
      return result(undefined, nothing);
    }
    const [base, found] = [new Candidate({}), new Candidate(best)];
    // Reversed: what was found runs first, where the incumbent ran first before.
    for (let round = 0; round < ROUNDS_CONFIRMING; round += 2) await this.pairOfRounds([found, base]);
    const failure = base.failure ?? found.failure;
    if (failure !== undefined) return result(undefined, `the confirmation failed: ${failure}`);
    const comparison = compare(base, found);
    const problem = problemWith(comparison);
    this.note({
      axis: 'confirmation',
      incumbent: {},
      rounds: ROUNDS_CONFIRMING,
      challengers: [{ settings: best, ratio: comparison.ratio, failure: undefined }],
      accepted: problem === undefined ? best : undefined,
      sentence: problem ?? 'it holds, in reversed order',
    });
    return problem === undefined
      ? result(best, 'better than the defaults, confirmed in reversed order', comparison)
      : result(undefined, `what looked better does not hold in reversed order: ${problem}`, comparison);
  }

  private note(step: Step): void {
    this.steps.push(step);
    this.options.onStep?.(step);
  }
}

/** The defaults themselves do not run: there is nothing to compare with. */
export class TuningFailed extends Error {}

class Candidate {
  readonly settings: TunableSettings;
  readonly outcomes: Success[] = [];
  failure: string | undefined;

  constructor(settings: TunableSettings) {
    this.settings = settings;
  }

  note(outcome: Outcome): void {
    if ('failure' in outcome) this.failure ??= outcome.failure;
    else this.outcomes.push(outcome);
  }

  checkOutput(drawn: string | undefined): void {
    if (this.outcomes.every((outcome) => outcome.drawn === drawn)) return;
    this.failure ??= 'it changes the output, which tuning never may';
  }
}

function compare(base: Candidate, other: Candidate): Comparison {
  const count = Math.min(base.outcomes.length, other.outcomes.length);
  const of = (candidate: Candidate, value: (outcome: Success) => number): number[] =>
    candidate.outcomes.slice(0, count).map(value);
  const score = pairedRatio(
    of(base, (each) => each.score),
    of(other, (each) => each.score),
  );
  const p99 = pairedRatio(
    of(base, (each) => each.p99Millis),
    of(other, (each) => each.p99Millis),
  );
  return { ...score, p99Ratio: p99.ratio };
}

function ratioOf(base: Candidate, other: Candidate): number {
  return Math.min(base.outcomes.length, other.outcomes.length) === 0 ? 0 : compare(base, other).ratio;
}

const percent = (ratio: number): string => `${ratio >= 1 ? '+' : ''}${(100 * (ratio - 1)).toFixed(1)} %`;

/** Why a comparison makes no winner; undefined when it does. */
function problemWith({ ratio, low, high, p99Ratio }: Comparison): string | undefined {
  if (high < 1) return `${percent(ratio)}: slower`;
  if (low <= 1) return `${percent(ratio)} (${percent(low)} to ${percent(high)}) is not told from nothing`;
  if (ratio < 1 + GAIN_MIN) return `${percent(ratio)} is not worth it`;
  if (p99Ratio > ratio) return `it gains ${percent(ratio)} and raises p99 by ${percent(p99Ratio)}`;
  return undefined;
}

/** Undefined while more rounds may decide. */
function verdictOf(base: Candidate, last: Candidate): { accepted: boolean; sentence: string } | undefined {
  const rounds = base.outcomes.length;
  if (rounds < ROUNDS_DECIDING_MIN) return undefined;
  const comparison = compare(base, last);
  const problem = problemWith(comparison);
  if (problem === undefined) return { accepted: true, sentence: percent(comparison.ratio) };
  const { ratio, high } = comparison;
  const hopeless = high < 1 + GAIN_MIN || ratio <= 1 || (rounds >= ROUNDS_HOPING_MAX && ratio < 1 + GAIN_MIN);
  return hopeless || rounds >= ROUNDS_DECIDING_MAX ? { accepted: false, sentence: problem } : undefined;
}

/** Searches. Throws TuningFailed when the defaults do not run, and whatever the bench throws. */
export function search(bench: Bench, options: SearchOptions): Promise<SearchResult> {
  return new Search(bench, options).run();
}
