/** Profiles of real runs: the numbers add up, equal the run's own, and change nothing of the answer. */
import { beforeAll, describe, expect, it } from 'vitest';
import {
  type Engine,
  type GenerationResult,
  type OpenOptions,
  open,
  type RecordedTrace,
} from '#dist/index.js';
import { TRACE } from '#dist/pipeline/trace.js';
import { chromeTrace } from '#dist/profile/chrome-trace.js';
import { figuresOf, type PhaseFigures, type ProfileFigures } from '#dist/profile/figures.js';
import { profilePage } from '#dist/profile/page.js';
import { PARTS, sumMillis } from '#dist/profile/parts.js';
import { profileOf, type RunProfile } from '#dist/profile/profile.js';
import { profileText } from '#dist/profile/text.js';
import { renderPage } from '#dist/report/page.js';
import { generate } from '../support/engine.js';
import { BUILT_IN_MODEL } from '../support/golden.js';

const PROMPT = 'How do I list the files of a tar archive?';
const ANSWER = { seed: 3, temperature: 0.8, maxTokens: 40 };
/** Smaller than the experts, so that there is something to read; chunks that make several of the prompt. */
const OPTIONS = { model: BUILT_IN_MODEL, memory: 24_000_000, contextLength: 256, chunk: 8 } as const;
const ESCAPE = '\u001b';

interface Profiled {
  readonly result: GenerationResult;
  readonly trace: RecordedTrace;
  readonly run: RunProfile;
  readonly figures: ProfileFigures;
}

async function profiled(options: Partial<OpenOptions>, model = 'model'): Promise<Profiled> {
  const engine: Engine = await open({ ...OPTIONS, ...options, trace: true });
  try {
    const generation = engine.generate(PROMPT, ANSWER);
    for await (const _ of generation);
    const { result } = generation;
    const { trace } = engine;
    const run = profileOf(trace);
    const { layers, experts, expertsPerToken } = engine.model.hyperparameters;
    const subject = { model, layers, experts, expertsPerToken, slots: 1, readEngine: 'x', version: '0' };
    return { result, trace, run, figures: figuresOf(run, subject, result) };
  } finally {
    await engine.close();
  }
}

const sum = (phase: PhaseFigures, key: 'lookups' | 'hits' | 'lateHits' | 'misses' | 'bytesRead'): number =>
  phase.layers.reduce((total, layer) => total + layer[key], 0);

describe.each([
  ['threads', {}],
  ['uring', {}],
  ['uring', { predict: 'temporal' as const }],
] as const)('a profile with %s %o', (ioEngine, more) => {
  let found: Profiled;
  beforeAll(async () => {
    found = await profiled({ ioEngine, ...more });
  });

  it("has every step's time in its parts, with nothing left over", () => {
    const { run, figures } = found;
    expect(figures.eventsLost).toBe(0);
    for (const phase of [run.prompt, run.answer]) {
      expect(phase.steps.length).toBeGreaterThan(1);
      let end = phase.beginMillis;
      for (const step of phase.steps) {
        expect(step.beginMillis).toBe(end);
        end = step.endMillis;
        // The residual is what adding up floating point numbers leaves: a nanosecond.
        expect(Math.abs(sumMillis(step.parts) - (step.endMillis - step.beginMillis))).toBeLessThan(1e-6);
        for (const part of PARTS) expect(step.parts[part]).toBeGreaterThanOrEqual(0);
      }
      expect(phase.endMillis).toBe(end);
    }
    for (const phase of [figures.prompt, figures.answer]) {
      expect(phase.unaccountedShare).toBeLessThan(1e-6);
      expect(sumMillis(phase.partShares) + phase.unaccountedShare).toBeCloseTo(1, 9);
    }
  });

  it("covers the run's own times", () => {
    const { run, figures, result } = found;
    const wholeMillis = (result.stats.promptMicros + result.stats.decodeMicros) / 1000;
    const partsMillis = figures.prompt.totalMillis + figures.answer.totalMillis + figures.endMillis;
    expect(partsMillis).toBeCloseTo(run.endMillis - run.beginMillis, 6);
    // The run's own clock is read beside the trace's: a thread that is put aside in between may see a little more.
    expect(Math.abs(partsMillis - wholeMillis) / wholeMillis).toBeLessThan(0.1);
  });

  it("counts what the run's totals count", () => {
    const { figures, result } = found;
    const { stats } = result;
    const both = (key: 'lookups' | 'hits' | 'bytesRead'): number =>
      sum(figures.prompt, key) + sum(figures.answer, key);
    expect(figures.prompt.tokens).toBe(stats.promptTokens);
    expect(figures.answer.tokens).toBe(stats.answerTokens - 1);
    expect(both('lookups')).toBe(stats.expertLookups);
    expect(both('hits')).toBe(stats.expertHits);
    // What was read ahead may be under way when the run ends.
    if (!('predict' in more)) expect(both('bytesRead')).toBe(stats.bytesRead);
    const { layers, expertsPerToken } = figures.subject;
    expect(figures.answer.layers).toHaveLength(layers);
    expect(sum(figures.answer, 'lookups')).toBe(figures.answer.tokens * layers * expertsPerToken);
  });

  it('knows which read was for which expert', () => {
    const { run } = found;
    expect(run.reads.length).toBeGreaterThan(0);
    for (const { issue } of run.reads) expect(issue).toBeDefined();
    for (const { disk } of [run.prompt, run.answer]) {
      expect(disk.mostDepth).toBeGreaterThanOrEqual(1);
      expect(disk.meanDepth).toBeGreaterThanOrEqual(1);
      expect(disk.meanDepth).toBeLessThanOrEqual(disk.mostDepth);
    }
  });

  it('fits a terminal of 60 columns, without an escape', () => {
    const text = profileText(found.figures);
    for (const line of text.split('\n')) expect(line.length, line).toBeLessThanOrEqual(60);
    expect(text).not.toContain(ESCAPE);
  });

  it('makes a trace in which slices nest and rows have names', () => {
    const text = [...chromeTrace(found.trace, 'a "title"')].join('');
    const parsed = JSON.parse(text) as { traceEvents: TraceEvent[]; otherData: Record<string, number> };
    expectValid(parsed.traceEvents);
    expect(parsed.otherData).toEqual({ eventsLeftOut: 0, eventsDropped: 0 });
    const steps = parsed.traceEvents.filter(({ cat }) => cat === 'step');
    expect(steps).toHaveLength(found.figures.prompt.steps + found.figures.answer.steps);
    const reads = parsed.traceEvents.filter(({ cat, name }) => cat === 'read' && name !== 'weights');
    expect(reads).toHaveLength(found.run.reads.length);
  });
});

it('a trace file is bounded, and says what it leaves out', async () => {
  const { trace } = await profiled({});
  const whole = JSON.parse([...chromeTrace(trace, 't')].join('')).traceEvents.length;
  const cut = JSON.parse([...chromeTrace(trace, 't', 50)].join(''));
  expect(cut.traceEvents).toHaveLength(51);
  expect(cut.otherData.eventsLeftOut).toBe(whole - 51);
  expectValid(cut.traceEvents);
});

interface TraceEvent {
  readonly ph: string;
  readonly name: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts?: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly args?: Record<string, unknown>;
}

const nanos = (micros: number): number => Math.round(micros * 1000);

/** What the trace event format asks for, as Perfetto reads it. */
function expectValid(events: readonly TraceEvent[]): void {
  const named = new Set(events.filter(({ name }) => name === 'thread_name').map(({ tid }) => tid));
  const rows = new Map<number, { begin: number; end: number }[]>();
  for (const event of events) {
    expect(['X', 'M', 'C', 'i']).toContain(event.ph);
    expect(event.pid).toBe(1);
    expect(Number.isInteger(event.tid)).toBe(true);
    if (event.ph === 'M') continue;
    expect(Number.isFinite(event.ts) && event.ts! >= 0).toBe(true);
    if (event.ph === 'C') expect(Object.values(event.args ?? {}).every(Number.isFinite)).toBe(true);
    if (event.ph === 'X' || event.ph === 'i') expect(named).toContain(event.tid);
    if (event.ph !== 'X') continue;
    expect(event.dur).toBeGreaterThanOrEqual(0);
    const begin = nanos(event.ts!);
    const row = rows.get(event.tid) ?? [];
    rows.set(event.tid, row);
    row.push({ begin, end: begin + nanos(event.dur!) });
  }
  for (const row of rows.values()) expectNested(row);
}

/** Two slices of a row are one inside the other, or apart. */
function expectNested(row: { begin: number; end: number }[]): void {
  row.sort((a, b) => a.begin - b.begin || b.end - a.end);
  const open: number[] = [];
  for (const { begin, end } of row) {
    while (open.length > 0 && open.at(-1)! <= begin) open.pop();
    if (open.length > 0) expect(end).toBeLessThanOrEqual(open.at(-1)!);
    open.push(end);
  }
}

describe('tracing', () => {
  it('changes nothing of the answer', async () => {
    const answers = [];
    for (const trace of [false, true, false]) {
      const engine = await open({ ...OPTIONS, precision: 'exact', predict: 'temporal', trace });
      try {
        answers.push(await generate(engine, PROMPT, ANSWER));
      } finally {
        await engine.close();
      }
    }
    expect(answers[0]!.tokens.length).toBeGreaterThan(5);
    expect(answers[1]).toEqual(answers[0]);
    expect(answers[2]).toEqual(answers[0]);
  });

  it('is not there unless it was asked for', async () => {
    const engine = await open(OPTIONS);
    try {
      expect(() => engine.trace).toThrow(expect.objectContaining({ code: 'ENGINE_STATE' }));
    } finally {
      await engine.close();
    }
  });

  it('tells the last of several runs, and none before the first', async () => {
    const engine = await open({ ...OPTIONS, trace: true });
    try {
      expect(() => profileOf(engine.trace)).toThrow(expect.objectContaining({ code: 'ENGINE_STATE' }));
      for (const maxTokens of [12, 5]) {
        for await (const _ of engine.generate(PROMPT, { ...ANSWER, maxTokens }));
      }
      expect(profileOf(engine.trace).answer.steps).toHaveLength(4);
    } finally {
      await engine.close();
    }
  });

  it('tells what there is of a run whose end was not kept', async () => {
    const { trace, result, figures } = await profiled({});
    const compute = trace.threads.find(({ role }) => role === 'compute')!;
    // Within the last token: its step has no end.
    compute.log.count -= 30;
    const cut = figuresOf(profileOf({ ...trace, notKept: 1000 }), figures.subject, result);
    expect(cut.eventsLost).toBe(1000);
    expect(cut.answer.steps).toBe(figures.answer.steps - 1);
    expect(cut.answer.unaccountedShare).toBeLessThan(1e-6);
  });

  it('keeps a hostile model name out of terminal and page', async () => {
    const { figures, run, trace } = await profiled({}, `${ESCAPE}[2J</script><script>x`.repeat(9));
    const text = profileText(figures);
    expect(text).not.toContain(ESCAPE);
    for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(60);
    const html = renderPage(profilePage(figures, run, trace));
    expect(html.match(/<script/g)).toHaveLength(3);
    expect(html).not.toContain(ESCAPE);
  });

  it('says when events were lost, and what that leaves out', async () => {
    const { trace, result, figures } = await profiled({});
    const threads = trace.threads.map((thread) => ({
      ...thread,
      dropped: thread.role === 'compute' ? 9 : 0,
    }));
    const lossy = figuresOf(profileOf({ ...trace, threads }), figures.subject, result);
    expect(lossy.eventsLost).toBe(9);
    expect(profileText(lossy)).toContain('9 of');
    const last = JSON.parse([...chromeTrace({ ...trace, threads, notKept: 4 }, 't')].join('')).otherData;
    expect(last).toEqual({ eventsLeftOut: 4, eventsDropped: 9 });
  });

  it('sees every kind of event that a run has', async () => {
    const { trace } = await profiled({ predict: 'temporal' });
    const seen = new Set<number>();
    for (const { log } of trace.threads) {
      for (let index = 0; index < log.count; index++) seen.add(log.kind(index));
    }
    // A queue with room makes nobody wait.
    seen.add(TRACE.waitQueue);
    expect([...seen].toSorted((a, b) => a - b)).toEqual(Object.values(TRACE).toSorted((a, b) => a - b));
  });
});
