/**
 * The rule by which an experiment is kept or discarded. It knows numbers only, so that nobody can argue with it.
 *
 * Gates come before the score: what fails, or answers worse, is discarded however fast it is. What is left must be told
 * from the incumbent with 95 % confidence and gain at least what the plan asks for.
 */
import { pairedRatio } from '../paired.ts';
import type { Ratio } from '../statistics.ts';

export interface Pair {
  readonly incumbent: number;
  readonly experiment: number;
}

export interface Evidence {
  readonly scores: readonly Pair[];
  /** Of the slowest hundredth of tokens; empty where a run has no answer. */
  readonly p99Millis: readonly Pair[];
  readonly perplexity: { readonly value: number; readonly baseline: number } | undefined;
}

export interface Rule {
  /** What an improvement is at least, as a share. */
  readonly gain: number;
  /** By what share of the baseline's the perplexity may rise; undefined for no gate. */
  readonly perplexityRaise: number | undefined;
  readonly p99Raise: number | undefined;
}

export interface Verdict {
  readonly kept: boolean;
  readonly reason: string;
  readonly ratio: Ratio;
  readonly p99Ratio: number | undefined;
}

const percent = (share: number): string => `${share >= 0 ? '+' : ''}${(100 * share).toFixed(1)} %`;

export function judge({ scores, p99Millis, perplexity }: Evidence, rule: Rule): Verdict {
  const ratio = ratioOf(scores);
  const p99Ratio = p99Millis.length === 0 ? undefined : ratioOf(p99Millis).ratio;
  const gain = percent(ratio.ratio - 1);
  const interval = `${percent(ratio.low - 1)} to ${percent(ratio.high - 1)}`;
  const discard = (reason: string): Verdict => ({ kept: false, reason, ratio, p99Ratio });
  if (perplexity !== undefined && rule.perplexityRaise !== undefined) {
    const { value, baseline } = perplexity;
    // Written so that no number at all is no pass.
    if (!(value <= baseline * (1 + rule.perplexityRaise))) {
      const raised = percent(value / baseline - 1);
      return discard(
        `perplexity ${value.toPrecision(5)} is ${raised}, allowed ${percent(rule.perplexityRaise)}`,
      );
    }
  }
  if (p99Ratio !== undefined && rule.p99Raise !== undefined && !(p99Ratio <= 1 + rule.p99Raise)) {
    return discard(`p99 is ${percent(p99Ratio - 1)}, allowed ${percent(rule.p99Raise)}; score ${gain}`);
  }
  if (ratio.high < 1) return discard(`slower: ${gain} (${interval})`);
  if (!(ratio.low > 1)) return discard(`not told from the incumbent: ${gain} (${interval})`);
  if (!(ratio.ratio >= 1 + rule.gain))
    return discard(`${gain} is less than the ${percent(rule.gain)} asked for`);
  return { kept: true, reason: `${gain} (${interval})`, ratio, p99Ratio };
}

function ratioOf(pairs: readonly Pair[]): Ratio {
  return pairedRatio(
    pairs.map(({ incumbent }) => incumbent),
    pairs.map(({ experiment }) => experiment),
  );
}
