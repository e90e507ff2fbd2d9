/** A machine whose true speeds are known, with the troubles of real ones: noise, drift, hiccups, settings that lean on each other. */
import type { TunableSettings } from '#dist/eval/settings.js';
import type { Bench, Outcome } from '#dist/eval/tune/search.js';

export class SimulatedBench implements Bench {
  runs = 0;
  private state: number;
  private readonly speed: (settings: TunableSettings) => number;
  private readonly p99: (settings: TunableSettings) => number;
  private readonly noise: number;

  constructor(
    seed: number,
    speed: (settings: TunableSettings) => number,
    options: { readonly noise?: number; readonly p99?: (settings: TunableSettings) => number } = {},
  ) {
    this.state = seed * 2654435761 + 1;
    this.speed = speed;
    this.noise = options.noise ?? 0.03;
    this.p99 = options.p99 ?? ((settings) => 20 / speed(settings));
  }

  async round(candidates: readonly TunableSettings[]): Promise<readonly Outcome[]> {
    return candidates.map((settings) => this.measure(settings));
  }

  private measure(settings: TunableSettings): Outcome {
    this.runs++;
    // It gets a tenth slower over a thousand runs, and breathes.
    const drift = 1 - 0.1 * Math.min(1, this.runs / 1000) + 0.02 * Math.sin(this.runs / 7);
    const hiccup = this.random() < 0.03 ? 0.7 : 1;
    const truth = this.speed(settings);
    if (Number.isNaN(truth)) return { seconds: 0.1, failure: 'the plan is refused' };
    return {
      seconds: 2,
      score: truth * drift * hiccup * Math.exp(this.noise * this.normal()),
      p99Millis: this.p99(settings) * Math.exp(2 * this.noise * this.normal()),
      drawn: settings.cachePolicy === 's3fifo' ? 'another' : 'the same',
    };
  }

  private random(): number {
    this.state = (Math.imul(this.state ^ (this.state >>> 15), 2246822519) + 0x9e3779b9) | 0;
    let mixed = this.state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
  }

  private normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.random())) * Math.cos(2 * Math.PI * this.random());
  }
}
