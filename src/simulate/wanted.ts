/** What each step of a trace wants: each expert once, in the order in which the rows name them, as the scheduler does it. */
import type { RoutingTrace } from '../pipeline/routing-trace.ts';

export class WantedExperts {
  /** (count) experts of the step read last; and as the predictor hears them, the last row's first. */
  readonly experts: Int32Array;
  readonly heard: Int32Array;
  count = 0;
  private readonly trace: RoutingTrace;
  private readonly seenIn: Int32Array;
  private mark = 0;

  constructor(trace: RoutingTrace) {
    this.trace = trace;
    this.experts = new Int32Array(trace.header.experts);
    this.heard = new Int32Array(trace.header.experts);
    this.seenIn = new Int32Array(trace.header.experts);
  }

  read(step: number): void {
    const { ids, stepFirst } = this.trace;
    const [first, last] = [stepFirst[step]!, stepFirst[step + 1]!];
    this.mark++;
    this.count = 0;
    for (let at = first; at < last; at++) {
      const expert = ids[at]!;
      if (this.seenIn[expert] === this.mark) continue;
      this.seenIn[expert] = this.mark;
      this.experts[this.count++] = expert;
    }
  }

  /** Fills `heard` for the step that was read. */
  hear(step: number): void {
    const { ids, stepFirst, header } = this.trace;
    const [first, last] = [stepFirst[step]!, stepFirst[step + 1]!];
    this.mark++;
    let count = 0;
    for (let row = last - header.expertsPerToken; row >= first; row -= header.expertsPerToken) {
      for (let at = row; at < row + header.expertsPerToken; at++) {
        const expert = ids[at]!;
        if (this.seenIn[expert] === this.mark) continue;
        this.seenIn[expert] = this.mark;
        this.heard[count++] = expert;
      }
    }
  }

  /** Whether the step read last wants this expert. Not after `hear`. */
  has(expert: number): boolean {
    return this.seenIn[expert] === this.mark;
  }
}
